"""Measures every merge method on a real model with skills: ours, mergekit's and PEFT's, in one table.

    python benchmarks/merging.py --model DIR --adapters DIR --work DIR --experts four six --page docs/merging.md
    python benchmarks/merging.py --model DIR --adapters DIR --work DIR --subsets 3 4

The adapters are those of `train_skills.py`. Settings are chosen on one set of held-out questions and scored on another.
Every evaluation is one line of ``results.jsonl`` in the work folder: a run that was stopped goes on, and one that was
finished only writes the page. Another tool, method or setting is a line of `merging_grid.py`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from merging_grid import ENTRIES, FOUR, SIX, SUBSET_ENTRIES, Entry, Settings
from merging_judge import SPLITS, Judge
from merging_page import page
from merging_predict import Reports, correlations
from merging_results import GUARDED, Result, Results, spelled
from merging_tools import TOOLS, Bench, expression

import surgeon
from surgeon.errors import SurgeonError

EXPERTS = {"four": FOUR, "six": SIX}


def specialists(bench: Bench, results: Results, skills: Sequence[str]) -> None:
    """What each specialist does by itself, which all shares are of; and that the base does none of it."""
    one = Entry("surgeon", "task_arithmetic", {"weight": (1.0,)})
    for skill in skills:
        for split in SPLITS:
            measure(bench, results, (skill,), one, {"weight": 1.0}, split, "specialist")
        measure(bench, results, (skill,), one, {"weight": 0.0}, "score", "base")


def measure(
    bench: Bench, results: Results, experts: Sequence[str], entry: Entry, given: Settings, split: str, role: str = ""
) -> Result:
    """One evaluation, unless it is known. `role` is what a merge of one is called in the results."""
    key = (tuple(experts), entry.tool, role or entry.method, "{}" if role else spelled(given), split)
    if key not in results.all:
        with TOOLS[entry.tool](bench, experts, entry, given) as seconds:
            found = bench.judge.measure(experts, split)
        results.add(Result(*key, **found, seconds=round(seconds, 2)))
        print(*key, {s: round(a, 2) for s, a in found["accuracy"].items()}, f"{found['kl']:.4f}", flush=True)
    return results.all[key]


def chosen(bench: Bench, results: Results, experts: Sequence[str], entry: Entry) -> None:
    """Try all settings of a method, then score the best one, and the best whose chat stays close to the base's."""
    tried = {spelled(given): given for given in entry.settings()}
    found = [measure(bench, results, experts, entry, given, "choose") for given in tried.values()]
    for best in (results.best(found), results.best(found, GUARDED)):
        if best is not None:
            measure(bench, results, experts, entry, tried[best.settings], "score")


def available(entries: Sequence[Entry], bench: Bench, tools: Sequence[str], methods: Sequence[str]) -> Iterator[Entry]:
    """The entries that were asked for and can be run here."""
    registered = surgeon.list_methods().sections["methods"]
    for entry in entries:
        asked = entry.tool in tools and (not methods or entry.method in methods)
        # tune is a verb, everything else a registered method.
        here = entry.tool != "surgeon" or entry.method in registered or entry.method in dir(surgeon)
        if asked and here and (entry.tool != "mergekit" or bench.mergekit):
            yield entry


def refused(bench: Bench, entries: Sequence[Entry], experts: Sequence[str]) -> list[str]:
    """What surgeon does not accept of the table, before anything is run."""
    faults = []
    for entry in entries:
        for given in entry.settings() if entry.tool == "surgeon" and not entry.data else ():
            try:
                surgeon.plan(expression(bench, experts, entry, given))
            except SurgeonError as error:
                faults.append(f"{entry.method} {spelled(given)}: {error}")
    return faults


def run(bench: Bench, results: Results, entries: Sequence[Entry], groups: Sequence[Sequence[str]]) -> list[str]:
    """All methods on all groups of experts; what failed is told at the end and not kept, so that it is tried again."""
    failed = []
    for experts in groups:
        for entry in entries:
            try:
                chosen(bench, results, experts, entry)
            except (SurgeonError, RuntimeError, ValueError) as error:
                failed.append(f"{entry.tool} {entry.method} on {', '.join(experts)}: {error}")
                print(failed[-1], file=sys.stderr, flush=True)
    return failed


def named(reference: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; it is called with the base's folder and the adapters'."""
    module, _, function = reference.partition(":")
    return getattr(import_module(module), function)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--adapters", type=Path, required=True, help="folder of the experts' adapters")
    parser.add_argument("--work", type=Path, required=True, help="where results and checkpoints are kept")
    parser.add_argument("--experts", nargs="*", choices=EXPERTS, default=[], help="which merges to measure")
    parser.add_argument("--subsets", nargs="*", type=int, default=[], help="all subsets of so many skills instead")
    parser.add_argument("--tools", nargs="*", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--methods", nargs="*", default=[], help="these alone")
    parser.add_argument("--mergekit", type=Path, help="the command mergekit-yaml; without it mergekit is left out")
    parser.add_argument("--predictor", nargs="*", default=[], help="module:function, a number for each subset")
    parser.add_argument(
        "--no-probe", action="store_true", help="leave `measure merge` with prompts out: a minute a subset"
    )
    parser.add_argument("--page", type=Path, help="write the table here")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--check", action="store_true", help="only say what surgeon refuses of the table of settings")
    return parser.parse_args()


def main() -> int:
    """Measure what is asked and not yet known, then write the page."""
    asked = options()
    torch.set_num_threads(asked.threads)
    asked.work.mkdir(parents=True, exist_ok=True)
    results = Results(asked.work / "results.jsonl")
    judge = Judge(asked.model, SIX, asked.work / "replies.json")
    bench = Bench(asked.model, asked.adapters, asked.work, asked.mergekit, asked.threads, judge)
    entries = list(available(ENTRIES, bench, asked.tools, asked.methods))
    if asked.check:
        faults = refused(bench, entries, FOUR)
        print("\n".join(faults) or "nothing is refused")
        return bool(faults)
    groups = [EXPERTS[name] for name in asked.experts]
    subsets = [subset for size in asked.subsets for subset in combinations(SIX, size)]
    specialists(bench, results, [skill for skill in SIX if any(skill in group for group in (*groups, *subsets))])
    failed = run(bench, results, entries, groups)
    for subset in subsets:
        for entry in SUBSET_ENTRIES:
            measure(bench, results, subset, entry, entry.only, "score")
    predictors = {reference: named(reference) for reference in asked.predictor}
    told = correlations(results, subsets, predictors, bench.all_folders, not asked.no_probe) if subsets else []
    print("\n".join(told))
    if asked.page:
        asked.page.write_text(page(results, Reports(bench.all_folders), told))
    print("\n".join(failed), file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
