"""How strong each change is in a result: least squares over a tensor, with standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Strength:
    """How much more of a change there is than the recipe says, as a share of it, and the standard error."""

    excess: float
    error: float


class Fit:
    """Normal equations of `residual ≈ Σ excessᵢ · changeᵢ`, gathered block by block."""

    def __init__(self, terms: int) -> None:
        self._gram = np.zeros((terms, terms))
        self._cross = np.zeros(terms)
        self._square = 0.0
        self._count = 0

    def add(self, residual: Tensor, changes: Sequence[Tensor]) -> None:
        """Take in a block."""
        self._square += float((residual * residual).sum())
        self._count += residual.numel()
        for i, one in enumerate(changes):
            self._cross[i] += float((one * residual).sum())
            for j in range(i, len(changes)):
                self._gram[i, j] += float((one * changes[j]).sum())
                self._gram[j, i] = self._gram[i, j]

    def strengths(self) -> tuple[Strength, ...]:
        """The fitted excess of each change; an infinite error where it cannot be told apart from nothing."""
        present = np.flatnonzero(np.diag(self._gram) > 0)
        found = [Strength(0.0, float("inf"))] * len(self._cross)
        if not len(present) or not np.isfinite(self._square):
            return tuple(found)
        inverse = np.linalg.pinv(self._gram[np.ix_(present, present)], rcond=1e-10, hermitian=True)
        excess = inverse @ self._cross[present]
        rest = max(self._square - float(excess @ self._cross[present]), 0.0)
        variance = rest / max(self._count - len(present), 1)
        for place, value, spread in zip(present, excess, np.diag(inverse), strict=True):
            found[place] = Strength(float(value), float(np.sqrt(variance * spread)))
        return tuple(found)

    @property
    def square(self) -> float:
        """Σ residual²."""
        return self._square

    @property
    def unexplained(self) -> float:
        """The share of Σ residual² that no strength of the changes explains."""
        present = np.flatnonzero(np.diag(self._gram) > 0)
        if not self._square or not len(present):
            return 1.0
        inverse = np.linalg.pinv(self._gram[np.ix_(present, present)], rcond=1e-10, hermitian=True)
        return max(1.0 - float(self._cross[present] @ inverse @ self._cross[present]) / self._square, 0.0)


def pooled(strengths: Sequence[Strength]) -> Strength:
    """One strength of many tensors, each weighted by its precision."""
    usable = [one for one in strengths if np.isfinite(one.error)]
    weights = [1 / max(one.error, 1e-12) ** 2 for one in usable]
    if not usable:
        return Strength(0.0, float("inf"))
    mean = sum(w * one.excess for w, one in zip(weights, usable, strict=True)) / sum(weights)
    return Strength(mean, sum(weights) ** -0.5)
