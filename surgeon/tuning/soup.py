"""Greedy soup: of many fine-tunes, those whose average scores best, taken in one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.space.api import merge
from surgeon.space.expr import Expr, Merge


@dataclass(frozen=True)
class Soup:
    """A greedy soup: the plain average of `kept`, best first, and its score.

    `alone` holds every model with its own score, best first; `tried` the score that each further model would have led
    to, in that order.
    """

    expr: Merge
    score: float
    kept: tuple[Expr, ...]
    alone: tuple[tuple[Expr, float], ...]
    tried: tuple[tuple[Expr, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "score": self.score, "kept": [str(model) for model in self.kept],
            "alone": {str(model): score for model, score in self.alone},
            "tried": {str(model): score for model, score in self.tried},
        }  # fmt: skip

    def summary(self) -> str:
        """One line a model, and the result."""
        tried, best = dict(self.tried), self.alone[0][0]
        lines = [f"{best}: {self.alone[0][1]:g} alone, the first"]
        for model, own in self.alone[1:]:
            fate = "kept" if model in self.kept else "left out"
            lines.append(f"{model}: {own:g} alone, {tried[model]:g} in the soup, {fate}")
        return "\n".join([*lines, f"the average of {len(self.kept)} scores {self.score:g}"])


def greedy_soup(models: Sequence[Expr], score: Callable[[Expr], float]) -> Soup:
    """Take models in from the best down; each stays if the score of the average does not fall.

    https://arxiv.org/abs/2203.05482, recipe 1. `models` are different ones, at least one.
    """
    alone = sorted(((model, score(model)) for model in models), key=lambda pair: -pair[1])
    kept, best = [alone[0][0]], alone[0][1]
    tried = []
    for model, _ in alone[1:]:
        reached = score(average([*kept, model]))
        tried.append((model, reached))
        if reached >= best:
            kept.append(model)
            best = reached
    return Soup(average(kept), best, tuple(kept), tuple(alone), tuple(tried))


def average(models: Sequence[Expr]) -> Merge:
    """The plain average."""
    return merge("linear", models, weight=1)
