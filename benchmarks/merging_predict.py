"""What foretells how good a merge will be: `surgeon measure merge` against the measured, over subsets of skills."""

import json
from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from merging_data import Folders, prompts_of
from merging_grid import SUBSET_ENTRIES
from merging_results import Result, Results, spelled

import surgeon

Predictor = Callable[[Path, Sequence[Path]], float]
"""Of the base's folder and the adapters': a number that is to order merges as their quality does."""

PROMPTS = 16

OF_WEIGHTS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "mean cosine": lambda told: told["whole"]["cosine"],
    "sign conflict": lambda told: -told["whole"]["conflict"],
    "subspace alignment, the worst": lambda told: min(told["whole"]["aligned"]),
    "`measure merge`": lambda told: told["score"],
}
OF_PROMPTS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    f"`measure merge` with {PROMPTS} prompts a skill": lambda told: told["score"],
}


class Reports:
    """Reports of `surgeon measure merge`, each made once and kept as a line of ``reports.jsonl``."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._path = folders[2] / "reports.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._known = {(tuple(one["models"]), bool(one["path"])): one for one in map(json.loads, lines)}

    def of(self, experts: Sequence[str], prompts: bool) -> Mapping[str, Any]:
        """What is said of a merge, as data; with prompts the path to the sum is run too."""
        key = tuple(experts), prompts
        if key not in self._known:
            model, adapters, work = self._folders
            given = {expert: prompts_of(work, expert, PROMPTS) for expert in experts} if prompts else None
            report = surgeon.measure_merge([adapters / expert for expert in experts], model, prompts=given)
            self._known[key] = report.to_dict()
            with self._path.open("a") as file:
                file.write(json.dumps(report.to_dict()) + "\n")
        return self._known[key]


def correlations(
    results: Results,
    subsets: Sequence[Sequence[str]],
    predictors: Mapping[str, Predictor],
    folders: Folders,
    probe: bool = True,
) -> list[str]:
    """Spearman's rank correlation of each predictor with what the subsets kept, as rows of a table.

    With `probe` also that of `measure merge` with prompts, which runs the model for a minute a subset.
    """
    found = {
        one: [results.all[tuple(subset), one.tool, one.method, spelled(one.only), "score"] for subset in subsets]
        for one in SUBSET_ENTRIES
    }
    rows = [
        "| predictor | "
        + " | ".join(f"{one.method} {_short(one.only)}: worst | mean" for one in found)
        + " | subsets |",
        "|---|" + "---|---|" * len(found) + "---|",
    ]
    sizes = sorted({len(subset) for subset in subsets})
    for name, value in _asked(Reports(folders), predictors, folders, probe).items():
        for chosen in (sizes, *([size] for size in sizes if len(sizes) > 1)):
            own = [[one for one in merges if len(one.experts) in chosen] for merges in found.values()]
            cells = [cell for merges in own for cell in _against(results, merges, value)]
            of = " and ".join(map(str, chosen))
            rows.append(f"| {name} | {' | '.join(cells)} | {len(own[0])} of {of} |")
    return rows


def _asked(
    reports: Reports, predictors: Mapping[str, Predictor], folders: Folders, probe: bool
) -> dict[str, Callable[[Result], float]]:
    """All predictors, as functions of a result; what they say is a higher number for a better merge."""
    model, adapters, _ = folders
    asked: dict[str, Callable[[Result], float]] = {}
    for prompts, told in ((False, OF_WEIGHTS), *([(True, OF_PROMPTS)] if probe else [])):
        for name, read in told.items():
            asked[name] = lambda one, read=read, prompts=prompts: read(reports.of(one.experts, prompts))
    for name, predictor in predictors.items():
        asked[name] = lambda one, predictor=predictor: predictor(model, [adapters / expert for expert in one.experts])
    return asked


def _against(results: Results, merges: Sequence[Result], value: Callable[[Result], float]) -> list[str]:
    """The correlation with the worst skill's share and with the mean."""
    guessed = [value(one) for one in merges]
    kept = [list(results.kept(one).values()) for one in merges]
    return [f"{spearman(guessed, [of(one) for one in kept]):+.2f}" for of in (min, lambda one: sum(one) / len(one))]


def _short(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{value:g}" for value in settings.values())


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of ranks, equal values sharing theirs; nan for fewer than three or where one is constant."""
    a, b = _ranks(one), _ranks(other)
    middle = (len(a) - 1) / 2
    product = sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True))
    size = sqrt(sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b))
    return product / size if size and len(a) > 2 else float("nan")


def _ranks(values: Sequence[float]) -> list[float]:
    return [(sum(v < value for v in values) + sum(v <= value for v in values) - 1) / 2 for value in values]
