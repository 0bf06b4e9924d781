"""The page that `merging.py` writes: a table for each merge, what was advised, what foretells how good one will be."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from math import sqrt

from merging_grid import ENTRIES, FOUR, SIX
from merging_judge import CHOOSING, REPLY, SCORING
from merging_predict import Reports
from merging_results import GUARDED, Result, Results
from table import processor, version


def page(results: Results, reports: Reports, told: Sequence[str]) -> str:
    """The whole page."""
    parts = [heading(), specialist_rows(results)]
    for title, experts in (("Four-way", FOUR), ("Six-way", SIX)):
        if results.of_experts(experts):
            parts.append(merge_rows(results, title, experts, reports.of(experts, prompts=False)["advice"]))
    foretold = "Spearman's rank correlation with the share kept, over subsets of the skills; higher is better."
    if told:
        parts.append(["## What foretells it", "", foretold, "", *told, ""])
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def heading() -> list[str]:
    """What was done, on which machine and when."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    error = sqrt(0.09 / SCORING)
    return [
        "# Merging, measured",
        "",
        "Written by `benchmarks/merging.py`: LoRA specialists of SmolLM2-135M-Instruct on synthetic skills that the",
        "base never does (`benchmarks/train_skills.py`), merged by every method with a few settings",
        "(`benchmarks/merging_grid.py`).",
        "",
        f"- Date: {datetime.now(UTC):%Y-%m-%d}; machine: {processor()}, {os.cpu_count()} cores, "
        f"Linux {platform.release()}; {versions}; mergekit 0.1.5",
        "- *worst*, *mean*: the share of a specialist's exact answers that the merge keeps, over its skills. Settings",
        f"  are chosen by *worst* on {CHOOSING} held-out questions a skill and scored on {SCORING} others: one answer",
        f"  is {1 / SCORING:.3f}, the standard error at .9 is {error:.2f}; adapters and merges have one seed each.",
        f"- *KL*: KL(base ‖ merge) in nats a token of the first {REPLY} tokens of the base's replies to the neutral",
        f"  chat prompts that come with surgeon. *guarded*: settings chosen among those with KL ≤ {GUARDED:g}.",
        "- *s*: surgeon in memory, what a method measures on data included; mergekit's command on float32 checkpoints",
        "  with the adapters merged in; PEFT's `add_weighted_adapter` and merging the result, the adapters loaded.",
        "  Other work ran beside most of them: they are upper bounds.",
        "",
    ]


def specialist_rows(results: Results) -> list[str]:
    """What the base and each specialist do alone."""
    known = [skill for skill in SIX if ((skill,), "surgeon", "specialist", "{}", "score") in results.all]
    rows = ["| | " + " | ".join(known) + " |", "|---|" + "---|" * len(known)]
    for role in ("base", "specialist"):
        found = {skill: results.all[(skill,), "surgeon", role, "{}", "score"] for skill in known}
        rows.append(f"| {role} | " + " | ".join(f"{found[skill].accuracy[skill]:.2f}" for skill in known) + " |")
        if role == "specialist":
            rows.append("| its chat KL | " + " | ".join(f"{one.kl:.3f}" for one in found.values()) + " |")
    return [*rows, ""]


def merge_rows(results: Results, title: str, experts: Sequence[str], advice: str) -> list[str]:
    """All methods on one group of experts, the best first."""
    measured, left = [], []
    for (tool, method), data in {(entry.tool, entry.method): entry.data for entry in ENTRIES}.items():
        best, guarded = picked(results, experts, tool, method)
        if best is None:
            left.append(f"{tool} {method}")
            continue
        cells = [f"{tool} {method}", "yes" if data else "–", *scored(results, best), f"{best.seconds:.1f}"]
        row = f"| {' | '.join([*cells, *(scored(results, guarded) if guarded else ['–'] * 4)])} |"
        measured.append((min(results.kept(best).values()), row))
    measured.sort(reverse=True)
    rows = [
        f"## {title}: {', '.join(experts)}",
        "",
        "| method | data | settings | worst | mean | KL | s | guarded: settings | worst | mean | KL |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(row for _, row in measured),
    ]
    said = f"`surgeon measure merge` says: {advice}"
    return [*rows, "", said, *([f"Not measured: {', '.join(left)}."] if left else []), ""]


def picked(results: Results, experts: Sequence[str], tool: str, name: str) -> tuple[Result | None, Result | None]:
    """The scores of a method at the settings chosen freely, and among those that are guarded; None where unknown."""
    tried = results.of(experts, tool, name, "choose")
    known = {one.settings: one for one in results.of(experts, tool, name, "score")}
    choices = (results.best(tried), results.best(tried, GUARDED))
    free, guarded = (known.get(one.settings) if one else None for one in choices)
    return free, guarded


def scored(results: Results, result: Result) -> list[str]:
    """Settings, worst, mean and chat KL."""
    kept = results.kept(result).values()
    settings = ", ".join(f"{name.rstrip('_')} {value}" for name, value in json.loads(result.settings).items())
    return [settings or "–", f"{min(kept):.2f}", f"{sum(kept) / len(kept):.2f}", f"{result.kl:.3f}"]
