"""The page that `merging.py` writes: a table for each merge, and what foretells how good one will be."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import Any

from merging_grid import ENTRIES, FOUR, SIX, SUBSET_ENTRIES
from merging_judge import CHOOSING, REPLY, SCORING
from merging_results import GUARDED, Result, Results, spelled
from safetensors.torch import load_file
from table import processor, version
from torch import Tensor

Predictor = Callable[[Path, Sequence[Path]], float]
"""Of the base's folder and the adapters': a number that is to order merges as their quality does."""


def page(
    results: Results, model: Path, adapters: Path, recommend: Callable[..., str] | None, told: Sequence[str]
) -> str:
    """The whole page."""
    parts = [heading(), specialist_rows(results)]
    for title, experts in (("Four-way", FOUR), ("Six-way", SIX)):
        advice = recommend(model, [adapters / expert for expert in experts]) if recommend else None
        parts.append(merge_rows(results, title, experts, advice))
    parts.append(["## What foretells it", "", *told, ""])
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def heading() -> list[str]:
    """What was done, on which machine and when."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("model-surgeon", "torch", "transformers", "peft"))
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


def merge_rows(results: Results, title: str, experts: Sequence[str], advice: str | None) -> list[str]:
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
    said = f"`surgeon measure merge` recommends {advice}." if advice else "No recommendation was asked for."
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


def correlations(results: Results, model: Path, adapters: Path, predictors: Mapping[str, Predictor]) -> list[str]:
    """Spearman's rank correlation of each predictor with the measured quality, over the subsets measured."""
    found = {
        entry: [one for one in results.of_any(entry.tool, entry.method, "score") if one.settings == _only(entry)]
        for entry in SUBSET_ENTRIES
    }
    rows = ["| predictor | " + " | ".join(f"{e.method}: worst | mean" for e in found) + " | subsets |"]
    rows.append("|---|" + "---|---|" * len(found) + "---|")
    for name, predictor in {"mean cosine": mean_cosine, **predictors}.items():
        cells, count = [], 0
        for subsets in found.values():
            guessed = [predictor(model, [adapters / skill for skill in one.experts]) for one in subsets]
            kept = [list(results.kept(one).values()) for one in subsets]
            worst, mean = [min(one) for one in kept], [sum(one) / len(one) for one in kept]
            cells += [f"{spearman(guessed, worst):+.2f}", f"{spearman(guessed, mean):+.2f}"]
            count = len(subsets)
        rows.append(f"| {name} | {' | '.join(cells)} | {count} |")
    return rows


def _only(entry: Any) -> str:
    return spelled(next(entry.settings()))


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of ranks, equal values sharing theirs; nan for fewer than three or where one is constant."""
    a, b = _ranks(one), _ranks(other)
    middle = (len(a) - 1) / 2
    product = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    size = sqrt(sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b))
    return product / size if size and len(a) > 2 else float("nan")


def _ranks(values: Sequence[float]) -> list[float]:
    return [(sum(v < value for v in values) + sum(v <= value for v in values) - 1) / 2 for value in values]


def mean_cosine(model: Path, adapters: Sequence[Path]) -> float:
    """The mean cosine of all pairs of adapters' task vectors, from their factors."""
    factors = [_factors(folder) for folder in adapters]
    pairs = [_inner(a, b) / sqrt(_inner(a, a) * _inner(b, b)) for a, b in combinations(factors, 2)]
    return sum(pairs) / len(pairs)


def _factors(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A [r, in] and B [out, r] of each module, in float64."""
    found = load_file(folder / "adapter_model.safetensors")
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in found})
    return {m: (found[f"{m}.lora_A.weight"].double(), found[f"{m}.lora_B.weight"].double()) for m in modules}


def _inner(one: Mapping[str, tuple[Tensor, Tensor]], other: Mapping[str, tuple[Tensor, Tensor]]) -> float:
    """⟨B₁A₁, B₂A₂⟩ summed over modules; equal scales are assumed and cancel in a cosine."""
    return sum(float(((b.T @ other[m][1]) * (a @ other[m][0].T)).sum()) for m, (a, b) in one.items())
