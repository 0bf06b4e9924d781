"""How strong each change is in a result: least squares over a tensor, with standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

#: A strength this far off must be found; what is not resolved to it is open.
RESOLUTION = 0.01
_SIGMAS = 4.0
_FLOOR = 0.001


@dataclass(frozen=True)
class Strength:
    """How much more of a change there is than the recipe says, as a share of it, and the standard error.

    `allowed` is the excess that rounding its coefficient explains.
    """

    label: str
    excess: float
    error: float
    allowed: float = 0.0

    @property
    def bound(self) -> float:
        """The excess that rounding and chance explain."""
        return self.allowed + _FLOOR + _SIGMAS * self.error

    @property
    def off(self) -> bool:
        """Whether it differs from the recipe's by more than that."""
        return abs(self.excess) > self.bound


class Fit:
    """Normal equations of `residual ≈ Σ excessᵢ · changeᵢ`, gathered block by block."""

    def __init__(self, changes: int) -> None:
        self.square = 0.0
        self._gram = np.zeros((changes, changes))
        self._cross = np.zeros(changes)
        self._count = 0

    def add(self, residual: Tensor, changes: Sequence[Tensor]) -> None:
        """Take in a block."""
        self.square += float(residual.square().sum())
        self._count += residual.numel()
        for i, one in enumerate(changes):
            self._cross[i] += float((one * residual).sum())
            for j, other in enumerate(changes):
                self._gram[i, j] += float((one * other).sum())

    def missed(self, excess: Sequence[float]) -> float:
        """The share of Σ residual² that is left where each change is so much stronger than the recipe says."""
        wrong = np.array(excess)
        left = self.square - 2 * float(wrong @ self._cross) + float(wrong @ self._gram @ wrong)
        return max(left, 0.0) / self.square if self.square else 1.0

    def solved(self, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The excess of each of the first `count` changes and its error: infinite where there is nothing of it."""
        excess, error = np.zeros(len(self._cross)), np.full(count, np.inf)
        present = np.flatnonzero(np.diag(self._gram)[:count] > 0)
        inverse = np.linalg.pinv(self._gram[np.ix_(present, present)], rcond=1e-10, hermitian=True)
        excess[present] = inverse @ self._cross[present]
        variance = self.missed(excess.tolist()) * self.square / max(self._count - len(present), 1)
        error[present] = np.sqrt(variance * np.diag(inverse))
        return excess, error


def pooled(strengths: Sequence[Strength]) -> Strength:
    """One strength of many tensors, each weighted by its precision."""
    weights = [1 / max(one.error, 1e-12) ** 2 for one in strengths]
    mean = sum(weight * one.excess for weight, one in zip(weights, strengths, strict=True)) / sum(weights)
    allowed = max(one.allowed for one in strengths)
    return replace(strengths[0], excess=mean, error=sum(weights) ** -0.5, allowed=allowed)
