"""What is left of a removed subspace in the bytes being written: measured tile by tile, before and after the edit."""

from __future__ import annotations

import torch
from torch import Tensor

from surgeon.planning.evaluation import Evaluator
from surgeon.planning.promises import Promise
from surgeon.space.edit_kernels import orthonormal


class Projection:
    """‖QᵀW‖, Frobenius, of a tensor that comes in tiles of whole rows, in order."""

    def __init__(self, frame: Tensor, axis: int, shape: tuple[int, ...]) -> None:
        self._frame, self._axis, self._shape = frame, axis, shape
        self._matrices: dict[int, Tensor] = {}
        self._square = self._sum = 0.0

    def add(self, tile: Tensor, start: int) -> None:
        """A tile, flat, from flat index `start` on."""
        rows = tile.reshape(-1, self._shape[-1])
        if self._axis == -1:
            part = (rows @ self._frame).double()
            self._square += float(part.square().sum())
            self._sum += float(part.sum())
            return
        residual = self._shape[-2]
        row, last = start // self._shape[-1], start // self._shape[-1] + len(rows)
        while row < last:
            matrix, inside = divmod(row, residual)
            stop = min(last, (matrix + 1) * residual)
            band = rows[row - start // self._shape[-1] : stop - start // self._shape[-1]]
            part = (self._frame[inside : inside + stop - row].T @ band).double()
            self._matrices[matrix] = self._matrices[matrix] + part if matrix in self._matrices else part
            row = stop

    @property
    def total(self) -> float:
        """The sum of QᵀW's entries: of squared entries under squared columns, Σ q²w²."""
        return float(sum((float(part.sum()) for part in self._matrices.values()), self._sum))

    @property
    def norm(self) -> float:
        """The norm of all that was added."""
        return float(sum((float(part.square().sum()) for part in self._matrices.values()), self._square)) ** 0.5


class Left:
    """‖QᵀW‖ of a promised tensor before its edit, and in what is stored after it."""

    def __init__(self, promise: Promise, evaluator: Evaluator, shape: tuple[int, ...]) -> None:
        frame = evaluator.whole(promise.frame).double()
        self._promise, self._evaluator = promise, evaluator
        self._known = [value for (key, _), value in evaluator.known.items() if key == promise.step]
        self._before = Projection(frame.float(), promise.axis, shape)
        self._after = Projection(frame, promise.axis, shape)

    def add(self, stored: Tensor, start: int) -> None:
        """A tile of what is stored. What was there before is known of the edit itself, or looked at again."""
        self._after.add(stored.double(), start)
        if not self._known:
            self._before.add(self._evaluator.value(self._promise.before, start, start + stored.numel()).float(), start)

    def norms(self) -> tuple[float, float]:
        """Before and after."""
        before = float(torch.linalg.vector_norm(self._known[0])) if self._known else self._before.norm
        return before, self._after.norm


def frame_of(rows: list[Tensor], gains: list[Tensor], gain: float) -> Tensor:
    """The columns Q of a promise, [d, k] float64, from the directions' rows and the gains as stored."""
    folded = None
    for one in gains:
        shifted = one.double() + gain
        folded = shifted if folded is None else folded * shifted
    return orthonormal(torch.cat(rows), folded)
