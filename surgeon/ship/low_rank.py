"""The low-rank changes that a plan knows: of edits along directions on every writer, of adapters, and of their sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from surgeon.engine.measure import measure_tensor
from surgeon.engine.reading import DiskReader
from surgeon.engine.values import BLOCK, Values
from surgeon.planning.core_space import Factors, factored
from surgeon.planning.evaluation import Evaluator
from surgeon.planning.step import Key, Step, Steps
from surgeon.space.kernels import TILE

#: An edit along R is one of low rank where so little of ‖W' − W‖ lies outside R: the rounding of float32.
_OUTSIDE = 1e-4


class Change(NamedTuple):
    """scale · left right, as the tensor is stored: [a, rows, k] and [b, k, columns], a and b 1 or its matrices."""

    scale: float
    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """k."""
        return self.left.shape[-1]


def changes(values: Values, key: Key, base: Key | None) -> tuple[Change, ...] | None:
    """What W' − W is a sum of; None where the plan knows no factors of it. () where nothing changes."""
    parts = _parts(values.plan.steps, key, base)
    if parts is None:
        return None
    found = []
    for part in parts:
        change = _of_factors(part, values) if isinstance(part, Factors) else _of_edit(part, values)
        if change is None:
            return None
        found.append(change)
    return tuple(found)


def matrices(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A tensor as matrices: how many, rows, columns. A vector is one row."""
    rows, columns = (1, *shape)[-2:] if shape else (1, 1)
    return torch.Size(shape[:-2]).numel(), rows, columns


def bands(shape: tuple[int, ...], size: int = TILE) -> Iterator[tuple[int, slice]]:
    """Every matrix in bands of whole rows of about `size` elements."""
    count, rows, columns = matrices(shape)
    height = max(size // max(columns, 1), 1)
    for matrix in range(count):
        for first in range(0, rows, height):
            yield matrix, slice(first, min(first + height, rows))


def _parts(steps: Steps, key: Key, base: Key | None) -> tuple[Factors | Step, ...] | None:
    """Edits and adapters' updates from the base on; None where something else is done."""
    step = steps[key]
    if key == base:
        return ()
    if step.kernel.startswith("round:"):
        return _parts(steps, step.inputs[0].key, base)
    if step.kernel.startswith("edit:") and len(step.inputs) == 2 and not step.wide:
        before = _parts(steps, step.inputs[0].key, base)
        return None if before is None else (*before, step)
    found = factored(steps, (key,), base)
    return _added_to(steps, step, base) if found is None else found[0]


def _added_to(steps: Steps, step: Step, base: Key | None) -> tuple[Factors | Step, ...] | None:
    """Updates added to a model that is not the base itself, but changed from it by parts of its own."""
    values = step.values
    if step.kernel != "combine" or not values["anchored"] or values["points"] or values["mass"] != 1:
        return None
    found = _parts(steps, step.inputs[0].key, base)
    for need, coefficient in zip(step.inputs[1:], values["coefficients"], strict=True):
        updates = factored(steps, (need.key,), base)
        if found is None or updates is None:
            return None
        found = (*found, *(update._replace(scale=update.scale * coefficient) for update in updates[0]))
    return found


def _of_factors(part: Factors, values: Values) -> Change:
    left, right = values.whole(part.left), values.whole(part.right)
    left, right = (left.T, right.T) if part.turned else (left, right)
    return Change(part.scale, left[None], right[None])


def _of_edit(step: Step, values: Values) -> Change | None:
    """R Rᵀ(W' − W), summed in float64 band by band; None where that is not all of the change."""
    evaluator = Evaluator(values.plan.steps, DiskReader(values.files, values.device), dict(values.known))
    measure_tensor(evaluator, step.key, BLOCK, lambda count: None)
    frame, last = evaluator.whole(step.inputs[1].key).double(), step.kernel.endswith("@last")
    count, rows, columns = matrices(step.spec.shape)
    shape = (count, rows, frame.shape[1]) if last else (count, frame.shape[1], columns)
    inside, square = torch.zeros(shape, dtype=torch.float64), 0.0
    for matrix, band in bands(step.spec.shape):
        start = (matrix * rows + band.start) * columns
        stop = (matrix * rows + band.stop) * columns
        before = evaluator.value(step.inputs[0].key, start, stop)
        moved = (evaluator.value(step.key, start, stop) - before).double().reshape(-1, columns)
        square += float(moved.square().sum())
        if last:
            inside[matrix, band] = moved @ frame
        else:
            inside[matrix] += frame[band].T @ moved
    if square - float(inside.square().sum()) > _OUTSIDE**2 * square:
        return None
    return Change(1.0, inside, frame.T[None]) if last else Change(1.0, frame[None], inside)
