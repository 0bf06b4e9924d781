"""What a reader makes of the codes of a quantised weight, and how far that is from the value they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from surgeon.planning.evaluation import Evaluator, ranges
from surgeon.planning.step import Target

_BLOCK = 1 << 20


def read_again(target: Target, evaluator: Evaluator, stored: Tensor, start: int, stop: int) -> Tensor:
    """Elements start to stop of a target as they will be read: those stored, or what stored codes stand for."""
    if target.requantised is None:
        return stored
    return evaluator.value(target.requantised.read, start, stop)


def requantisation_error(target: Target, evaluator: Evaluator) -> float:
    """‖Ŵ − W‖/‖W‖ (Frobenius) of a weight that is quantised again, W its exact value; 0 where that is zero."""
    assert target.requantised is not None
    exact, off, size = evaluator.whole(target.requantised.exact).reshape(-1), 0.0, 0.0
    for start, stop in ranges(target.spec.count, _BLOCK):
        value = exact[start:stop].double()
        read = evaluator.value(target.requantised.read, start, stop).double()
        off += float(torch.sum((read - value).square()))
        size += float(torch.sum(value.square()))
    return (off / size) ** 0.5 if size else 0.0
