"""How well a direction tells two sets of states apart, and how directions drift from point to point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.artifacts.direction import Direction
from surgeon.space.fitter import Moments

States = Mapping[str, Tensor]
Folds = tuple[Mapping[str, Moments], ...]


def auroc(positive: Tensor, negative: Tensor) -> float:
    """The share of pairs in which the positive score is the higher, ties counting half: exact, from ranks."""
    scores = torch.cat([positive.flatten(), negative.flatten()])
    _, place, count = scores.unique(return_inverse=True, return_counts=True)
    above = count.cumsum(0)
    rank = above.double() - (count.double() - 1) / 2  # from 1; equal scores share their mean rank
    wins = rank[place[: positive.numel()]].sum() - positive.numel() * (positive.numel() + 1) / 2
    return float(wins / (positive.numel() * negative.numel()))


def score(states: Tensor, rows: Tensor) -> Tensor:
    """Projections on a row, [n]; on several, their sum with each row's own sign."""
    return (states.double() @ rows.double().reshape(-1, states.shape[-1]).T).sum(1)


@dataclass(frozen=True)
class Separation:
    """AUROC on held-out states at one point, and what chance gives there.

    The controls have no sign, so they count from one half up: `shuffled` holds directions refitted with half of each
    training set's labels exchanged, `random` directions drawn at random.
    """

    point: str
    auroc: float
    shuffled: tuple[float, ...]
    random: tuple[float, ...]

    @property
    def chance(self) -> float:
        """The best a control did."""
        return max((*self.shuffled, *self.random), default=0.5)


def separations(
    rows: Mapping[str, Tensor],
    positive: States,
    negative: States,
    shuffled: tuple[Mapping[str, Tensor], ...] = (),
    random: int = 8,
    seed: int = 0,
) -> tuple[Separation, ...]:
    """Each point's separation of held-out states, [n, d], by the rows fitted there."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for point, own in rows.items():
        drawn = torch.randn(random, own.shape[-1], generator=generator, dtype=torch.float64)

        def folded(row: Tensor, point: str = point) -> float:
            value = auroc(score(positive[point], row), score(negative[point], row))
            return max(value, 1 - value)

        value = auroc(score(positive[point], own), score(negative[point], own))
        refitted = tuple(folded(other[point]) for other in shuffled if point in other)
        found.append(Separation(point, value, refitted, tuple(map(folded, drawn))))
    return tuple(found)


def shuffled_rows(
    positive: Folds,
    negative: Folds,
    fit: Callable[[str, Moments, Moments], Tensor | None],
    draws: int = 4,
    seed: int = 0,
) -> tuple[dict[str, Tensor], ...]:
    """Directions refitted with labels exchanged for half of each set, from the moments of the sets' folds.

    Both of the new sets hold either label with equal weight, so that nothing is left of the true difference. None from
    sets of a single fold.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws if min(len(positive), len(negative)) > 1 else 0):
        halves = [_halves(folds, generator) for folds in (positive, negative)]
        rows = {}
        for point in positive[0]:
            sides = [[total(half, point).weighing(1) for half in side] for side in zip(*halves, strict=True)]
            fitted = fit(point, *(one + other for one, other in sides))
            if fitted is not None:
                rows[point] = fitted
        found.append(rows)
    return tuple(found)


def _halves(folds: Folds, generator: torch.Generator) -> tuple[Folds, Folds]:
    order = torch.randperm(len(folds), generator=generator).tolist()
    return tuple(folds[at] for at in order[::2]), tuple(folds[at] for at in order[1::2])


def total(folds: Folds, point: str) -> Moments:
    """The moments of all folds at a point."""
    first, *others = (fold[point] for fold in folds)
    return sum(others, first)


def drift(bank: Direction) -> Tensor:
    """Cosines between the directions of each two points, [points, points], in the bank's order.

    For subspaces the root mean square cosine of their principal angles, which has no sign.
    """
    bases = [rows.double() for rows in bank.tensors.values()]
    if all(len(rows) == 1 for rows in bases):
        units = torch.nn.functional.normalize(torch.cat(bases), dim=1)
        return units @ units.T
    spans = [torch.linalg.qr(rows.T)[0] for rows in bases]
    cosines = [
        [torch.linalg.matrix_norm(left.T @ right) / min(left.shape[1], right.shape[1]) ** 0.5 for right in spans]
        for left in spans
    ]
    return torch.tensor(cosines, dtype=torch.float64)
