"""The rank of a change, from two passes over it: a random sketch of its span, then its energy within that span.

Randomised range finder: Halko, Martinsson and Tropp, https://arxiv.org/abs/0909.4061.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Directions sketched; a rank near it or above is called full.
SKETCH = 48
_SPARE = 8


@dataclass(frozen=True)
class Rank:
    """`rank` is None where the change has no low rank, 0 where it does not stand out of rounding.

    `stable` is ‖D‖² Frobenius / ‖D‖² spectral.
    """

    rank: int | None
    stable: float

    def __str__(self) -> str:
        return "full" if self.rank is None else f"≤ {self.rank}" if self.rank else "within rounding"

    def __lt__(self, other: Rank) -> bool:
        return self.rank is not None and (other.rank is None or self.rank < other.rank)


Rows = Callable[[], Iterator[tuple[int, Tensor]]]
"""Bands of the change as (first row, float64 [rows, columns]); called once a pass."""


def estimate(rows: Rows, shape: tuple[int, int], square: float, noise: float) -> Rank:
    """The rank of a change whose Σ entries² is `square`, above rounding noise of variance `noise` an entry.

    Singular values that noise alone would give are not counted: rounding makes every change formally full.
    """
    height, width = shape
    size = min(SKETCH, height, width)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(width, size, generator=generator, dtype=torch.float64)
    span = torch.empty(height, size, dtype=torch.float64)
    for first, band in rows():
        span[first : first + len(band)] = band @ probe
    basis = torch.linalg.qr(span).Q
    energy = torch.zeros(width, size, dtype=torch.float64)
    for first, band in rows():
        energy += band.T @ basis[first : first + len(band)]
    values = torch.linalg.svdvals(energy)
    largest = float(values[0])
    floor = max(1.5 * noise**0.5 * (height**0.5 + width**0.5), 1e-6 * largest)
    rank = int((values > floor).sum())
    full = (size == SKETCH and rank > SKETCH - _SPARE) or rank == min(shape)
    return Rank(None if full else rank, square / largest**2 if largest else 0.0)
