"""Changes of a matrix as factors: joined exactly, cut to a rank or an error; never the dense product of factors.

Everything in float64. Eckart and Young: what a cut leaves out is the tail of the singular values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.errors import RefusedError

#: Singular values below this share of the largest are rounding of float32 weights, and no rank.
_NOISE = 1e-6
#: A change is sketched rather than decomposed whole where it has so many times more singular values than are kept.
_SKETCHED, _SPARE, _POWERS = 6, 16, 4


@dataclass(frozen=True)
class Factors:
    """B [out, r] and A [r, in]; `error` is ‖D − BA‖/‖D‖, what was cut off the change D, `norm` is ‖D‖."""

    b: Tensor
    a: Tensor
    error: float
    norm: float

    @property
    def rank(self) -> int:
        """How many columns B has."""
        return self.b.shape[1]

    def cast(self, dtype: torch.dtype) -> Factors:
        """The same in a dtype; the rounding to 16 bits is part of the error."""
        b, a = self.b.to(dtype), self.a.to(dtype)
        if dtype.itemsize > 2:
            return Factors(b, a, self.error, self.norm)
        outer = torch.linalg.qr(torch.cat([self.b.double(), -b.double()], dim=1)).R
        inner = torch.linalg.qr(torch.cat([self.a.double(), a.double()]).T).R
        rounding = float(torch.linalg.matrix_norm(outer @ inner.T)) / self.norm if self.norm else 0.0
        return Factors(b, a, math.hypot(self.error, rounding), self.norm)


@dataclass(frozen=True)
class Limit:
    """How much of a change is kept: at most `rank` directions, or as many as leave ‖D − BA‖ ≤ `error`·‖D‖; or all."""

    rank: int | None = None
    error: float | None = None

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return self.rank is not None or self.error is not None

    def kept(self, values: Tensor, square: float) -> int:
        """How many of the descending singular values stay, of a change of squared norm `square`."""
        kept = int((values > _NOISE * values[:1]).sum()) if len(values) else 0
        if self.error is not None:
            left = (square - values.square().cumsum(0)).clamp(min=0)
            enough = (left <= self.error**2 * square).nonzero()[:, 0]
            kept = min(kept, int(enough[0]) + 1) if len(enough) else kept
        return kept if self.rank is None else min(kept, self.rank)


def limit(rank: int | None, error: float | None) -> Limit:
    """A limit as a user gives it. RefusedError for a rank below 1 and an error that is no share."""
    if rank is not None and rank < 1:
        raise RefusedError(f"a rank of {rank} holds nothing", hint="give 1 or more")
    if error is not None and not 0 <= error < 1:
        raise RefusedError(f"an error of {error:g} is no share", hint="give one from 0 to below 1, such as 0.05")
    return Limit(rank, error)


def joined(terms: Sequence[tuple[float, Tensor, Tensor]], limit: Limit) -> Factors:
    """Σ cᵢ BᵢAᵢ of terms (c, B, A) as [c₁B₁ …][A₁; …], exactly; with a limit cut through the QR of both."""
    b = torch.cat([coefficient * left.double() for coefficient, left, _ in terms], dim=1)
    a = torch.cat([right.double() for _, _, right in terms])
    if not limit.given and b.shape[1] <= min(len(b), a.shape[1]):
        left, right = torch.linalg.qr(b).R, torch.linalg.qr(a.T).R
        return Factors(b, a, 0.0, float(torch.linalg.matrix_norm(left @ right.T)))
    (outer, left), (inner, right) = torch.linalg.qr(b), torch.linalg.qr(a.T)
    core = _cut(left @ right.T, limit)
    return Factors(outer @ core.b, core.a @ inner.T, core.error, core.norm)


def factorised(change: Tensor, limit: Limit) -> Factors:
    """A dense change [out, in] as factors."""
    change = change.double()
    wanted = None if limit.rank is None or limit.error is not None else limit.rank
    if wanted is None or _SKETCHED * (wanted + _SPARE) > min(change.shape):
        return _cut(change, limit)
    basis = _range(change, wanted + _SPARE)
    core = _cut(basis.T @ change, limit)
    return _measured(change, basis @ core.b, core.a)


def _cut(change: Tensor, limit: Limit) -> Factors:
    """By singular values, each factor with their square roots."""
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    square = float(values.square().sum())
    kept = limit.kept(values, square)
    root = values[:kept].sqrt()
    tail = float(values[kept:].square().sum())
    return Factors(left[:, :kept] * root, root[:, None] * right[:kept], _ratio(tail, square), math.sqrt(square))


def _range(change: Tensor, size: int) -> Tensor:
    """An orthonormal basis [out, size] of what a change does most: Halko et al., https://arxiv.org/abs/0909.4061."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(change.shape[1], size, generator=generator, dtype=change.dtype)
    basis = torch.linalg.qr(change @ probe).Q
    for _ in range(_POWERS):
        basis = torch.linalg.qr(change @ torch.linalg.qr(change.T @ basis).Q).Q
    return basis


def _measured(change: Tensor, b: Tensor, a: Tensor) -> Factors:
    square = float(change.square().sum())
    return Factors(b, a, _ratio(float((change - b @ a).square().sum()), square), math.sqrt(square))


def _ratio(tail: float, square: float) -> float:
    return math.sqrt(tail / square) if square else 0.0
