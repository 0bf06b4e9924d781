"""Results of single evaluations, one JSON line each, so that a run can be stopped and goes on where it was."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merging_grid import Settings

GUARDED = 0.04
"""Nats a token of chat that a guarded choice may cost."""


@dataclass(frozen=True)
class Result:
    """One merge, measured on one split."""

    experts: tuple[str, ...]
    tool: str
    method: str
    settings: str
    split: str
    accuracy: dict[str, float]
    kl: float
    seconds: float

    @property
    def key(self) -> tuple[Any, ...]:
        """What must not be measured twice."""
        return self.experts, self.tool, self.method, self.settings, self.split


def spelled(settings: Settings) -> str:
    """Settings as one text, always the same."""
    return json.dumps(dict(settings), sort_keys=True)


class Results:
    """All results of a file; what is added is written at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        self.all = {one.key: one for one in (Result(**line | {"experts": tuple(line["experts"])}) for line in found)}

    def add(self, result: Result) -> None:
        """Keep a result, in memory and in the file."""
        self.all[result.key] = result
        with self._path.open("a") as file:
            file.write(json.dumps(vars(result)) + "\n")

    def of(self, experts: Sequence[str], tool: str, method: str, split: str) -> list[Result]:
        """What was measured of a method on a split, in the order of measuring."""
        wanted = (tuple(experts), tool, method, split)
        return [one for one in self.all.values() if (one.experts, one.tool, one.method, one.split) == wanted]

    def of_experts(self, experts: Sequence[str]) -> list[Result]:
        """Everything that was measured of a merge."""
        return [one for one in self.all.values() if one.experts == tuple(experts)]

    def kept(self, result: Result) -> dict[str, float]:
        """The share of each specialist's accuracy on the same questions that is kept; KeyError before it is known."""
        own = {skill: self.all[(skill,), "surgeon", "specialist", "{}", result.split] for skill in result.experts}
        return {skill: result.accuracy[skill] / own[skill].accuracy[skill] for skill in result.experts}

    def best(self, found: Iterable[Result], kl: float = float("inf")) -> Result | None:
        """The one that keeps most of its worst skill (then most on average, then chat), among those within `kl`."""

        def order(one: Result) -> tuple[float, float, float]:
            kept = self.kept(one).values()
            return min(kept), sum(kept), -one.kl

        return max((one for one in found if one.kl <= kl), key=order, default=None)
