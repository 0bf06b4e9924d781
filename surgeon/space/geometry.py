"""Lengths and angles of models, told by inner products alone.

A method on a sphere needs no more than the Gram matrix of its inputs: it finds the coefficients of a linear combination
there, and one combination of the blocks follows. The vectors are whole tensors, rows (runs along the last axis) or
columns (one entry of every row); a *gram* is float64 [model, model, …], its last axes broadcasting over a block of
[model, …]. A tensor of one axis is one vector, whatever is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from surgeon.space.numeric import column, total
from surgeon.space.statistics import Place, Products, Statistic

Vector = Literal["tensor", "rows", "columns"]
_SMALL_ANGLE = 1e-12
"""Squared sine below which an arc is a chord, or, of opposite vectors, has no direction."""


def gram(vectors: Tensor, products: Products, along: Vector = "tensor", columns: Tensor | None = None) -> Tensor:
    """The inner products of a block [model, …]: those of the whole tensors, of its rows, or of its columns."""
    if along == "tensor" or vectors.ndim <= 2:
        whole = torch.tensor(products, dtype=torch.float64, device=vectors.device)
        return whole.reshape(*whole.shape, *[1] * (vectors.ndim - 1))
    if along == "rows":
        return _table([wide.sum(-1, keepdim=True) for wide in _pairs(vectors)], len(vectors))
    assert columns is not None
    table = columns.to(vectors.device)
    return table.reshape(*table.shape[:2], *[1] * (vectors.ndim - 2), -1)


def cosines(gram: Tensor, floor: float = 0.0) -> Tensor:
    """Cosines of the angles, [model, model, …]; 0 where a vector is zero. `floor` bounds products of lengths below."""
    lengths = torch.diagonal(gram, dim1=0, dim2=1).movedim(-1, 0).sqrt()
    product = (lengths.unsqueeze(0) * lengths.unsqueeze(1)).clamp_min(floor)
    return (gram / (product + (product == 0))).clamp(-1, 1)


def arc(gram: Tensor, t: float, *, opposite: Literal["refuse", "linear"] = "refuse") -> Tensor:
    """Coefficients [2, …] of the point at `t` on the arc from the first of two vectors to the second.

    Lengths are not changed first, as in Shoemake's formula on the vectors themselves. ValueError where two vectors are
    opposite, unless `linear` interpolates them along the line.
    """
    cosine = cosines(gram)[0, 1]
    straight = 1 - cosine * cosine <= _SMALL_ANGLE
    if opposite == "refuse" and gram.device.type != "meta" and (straight & (cosine < 0)).any():
        raise ValueError(OPPOSITE)
    angle = torch.acos(cosine)
    sine = torch.where(straight, 1.0, torch.sin(angle))
    first = torch.where(straight, 1 - t, torch.sin((1 - t) * angle) / sine)
    second = torch.where(straight, t, torch.sin(t * angle) / sine)
    return torch.stack([first, second])


OPPOSITE = (
    "the models point in opposite directions here, so that no arc joins them; leave one out, or give this tensor "
    "`opposite: linear`, a setting that takes rules"
)


def combined(coefficients: Tensor | Sequence[float], vectors: Tensor) -> Tensor:
    """Σ cᵢxᵢ of a block, as (Σ cᵢ)x₀ + Σ cᵢ(xᵢ − x₀): equal models give exactly themselves where the cᵢ sum to 1."""
    if isinstance(coefficients, Tensor):
        mass, rest = total(coefficients).to(vectors.dtype), coefficients[1:].to(vectors.dtype)
    else:
        mass, rest = math.fsum(coefficients), column(list(coefficients[1:]), vectors)
    first = vectors[0] * mass
    if len(vectors) == 1:
        return first
    moved = vectors[1:] - vectors[0]
    moved *= rest
    return total(moved).add_(first)


@dataclass(frozen=True)
class Points:
    """Vectors on the unit sphere, known by their cosines [model, model]; a point of their span is coefficients [model].

    Small tables of float64, in Python's own mathematics: the same on every machine.
    """

    cosines: np.ndarray

    @classmethod
    def of(cls, products: Products) -> tuple[Points, np.ndarray]:
        """The directions of vectors and their lengths; a vector of length zero has cosine 0 with all."""
        table = np.array(products, dtype=np.float64)
        lengths = np.sqrt(np.diagonal(table))
        product = np.outer(lengths, lengths)
        return cls(np.clip(table / np.where(product > 0, product, 1.0), -1, 1)), lengths

    def length(self, point: np.ndarray) -> float:
        """Length of a combination."""
        return math.sqrt(max(_sum(point * self.along(point)), 0.0))

    def along(self, point: np.ndarray) -> np.ndarray:
        """Inner product of a combination with every vector."""
        return np.array([_sum(row * point) for row in self.cosines])

    def chord(self, weights: np.ndarray) -> np.ndarray:
        """The direction of the weighted sum. ValueError where the sum cancels."""
        length = self.length(weights)
        if length <= 1e-4 * _sum(np.abs(weights)):
            raise ValueError(OPPOSITE)
        return weights / length

    def tangent(self, weights: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Σ wᵢ log(uᵢ), the weighted sum of the arcs from `at` to every vector. ValueError for an opposite one."""
        cosine = np.clip(self.along(at), -1, 1)
        if (cosine[weights != 0] < -1 + _SMALL_ANGLE).any():
            raise ValueError(OPPOSITE)
        angles = [math.acos(each) for each in cosine]
        stretched = weights * np.array([angle / math.sin(angle) if angle > 1e-8 else 1.0 for angle in angles])
        return stretched - _sum(stretched * cosine) * at

    def walk(self, at: np.ndarray, tangent: np.ndarray) -> np.ndarray:
        """The point reached from `at` along an arc, exp(tangent)."""
        length = self.length(tangent)
        reached = math.cos(length) * at + (math.sin(length) / length if length else 1.0) * tangent
        return reached / self.length(reached)


def _sum(values: np.ndarray) -> float:
    """A sum in one order, exactly rounded."""
    return math.fsum(values.tolist())


@dataclass(frozen=True)
class ColumnProducts(Statistic):
    """Inner products of columns, [model, model, columns], summed over bands of rows in their order, in float64.

    For methods whose `blocks` are rows; `needed` says at which settings.
    """

    def needed(self, settings: Mapping[str, Any]) -> bool:
        """Whether a method uses them with these settings."""
        return True

    @property
    @override
    def rounds(self) -> int:
        return 1

    @property
    @override
    def reads(self) -> int:
        return 0  # inner products of whole tensors have looked already

    @override
    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> Tensor | None:
        return torch.eye(models, dtype=torch.float64).unsqueeze(-1) if self.needed(settings) else None

    @override
    def wanted(self, known: Tensor | None, place: Place, count: int) -> int:
        return 0 if known is None else count

    @override
    def observe(self, known: Any, values: Tensor, place: Place) -> Tensor | None:
        if values.ndim <= 2:
            return None
        banded = values.reshape(len(values), -1, values.shape[-1])
        return _table([wide.sum(0) for wide in _pairs(banded)], len(values))

    @override
    def of(self, values: Tensor, settings: Mapping[str, Any]) -> Tensor | None:
        known = self.begin(len(values), values[0].numel(), settings)
        return known if known is None or values.device.type == "meta" else self.observe(known, values, (0, 0))

    @override
    def collect(self, known: Any, partials: dict[Any, Any], place: Place, partial: Tensor | None) -> None:
        if partial is not None:
            partials["total"] = partials["total"] + partial if "total" in partials else partial

    @override
    def conclude(self, known: Any, partials: Mapping[Any, Any]) -> Tensor | None:
        return partials.get("total", known)

    @override
    def at(self, known: Tensor | None, place: Place) -> Tensor | None:
        return known


def _pairs(vectors: Tensor) -> Iterator[Tensor]:
    """Products of each pair of models, entry by entry, in float64."""
    wide = vectors.double()
    return (wide[i] * wide[j] for i in range(len(wide)) for j in range(i, len(wide)))


def _table(pairs: Sequence[Tensor], models: int) -> Tensor:
    """A symmetric table [model, model, …] of its upper half, in the order of `_pairs`."""
    places = [(i, j) for i in range(models) for j in range(i, models)]
    of = {place: number for number, place in enumerate(places)}
    return torch.stack([torch.stack([pairs[of[min(i, j), max(i, j)]] for j in range(models)]) for i in range(models)])
