"""How large the terms are that a value is summed from: what an error bound of any order of summation rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from surgeon.measuring.rounding import ulp, unit
from surgeon.planning.evaluation import Evaluator
from surgeon.planning.step import Key, Step, below
from surgeon.space.fp8 import unrounded

#: Elements looked at together.
_BAND = 1 << 18


def slack(evaluator: Evaluator, key: Key, value: Tensor, start: int, stop: int) -> Tensor:
    """How far any float32 computation of a value may lie from it, entry by entry, before the last rounding."""
    size, steps = magnitude(evaluator, key, start, stop).cpu(), evaluator.steps
    # A cast from float64 passes through float32, which may move a value by one rounding more.
    allowed = roundings(steps, key) * unit("F32") * size + ulp(value, "F32")
    if steps[key].kernel.startswith("round:"):
        # Compensated rounding takes either neighbour; which one hangs on the last bit of every other entry.
        allowed += ulp(value, steps[key].kernel.removeprefix("round:").removesuffix("@last"))
    if steps[key].kernel == "fp8:quantise" and len(steps[key].inputs) > 2:
        allowed += ulp(value, "F8_E4M3")
    return allowed


def magnitude(evaluator: Evaluator, key: Key, start: int, stop: int) -> Tensor:
    """Σ|terms| of a value, entry by entry, as float64; zero where nothing is added up."""
    step = evaluator.steps[key]
    if step.kernel == "low_rank":
        return _low_rank(evaluator, step, start, stop)
    if step.kernel.startswith("edit:") and any(need.whole for need in step.inputs):
        return _edited(evaluator, step, start, stop)
    if step.kernel == "fp8:quantise":
        return _coded(evaluator, step, start, stop)
    aligned = [need.key for need in step.inputs if not need.whole and need.rows is None]
    if not aligned:
        return evaluator.value(key, start, stop).double().abs()
    parts = [magnitude(evaluator, need, start, stop) for need in aligned]
    total = parts[0]
    for part, weight in zip(parts[1:], _weights(step, len(parts) - 1), strict=True):
        # A point enters by its difference from the first, so that one's magnitude counts once more.
        total = total + weight * (part + parts[0])
    return total + evaluator.value(key, start, stop).double().abs()


def roundings(steps: Mapping[Key, Step], key: Key) -> int:
    """How many roundings of the terms' magnitude one value may see, at most, whatever the order."""
    count = 4
    for step in below(steps, key):
        count += 2 * len(step.inputs)
        if step.kernel in ("low_rank", "dora"):
            count += min(steps[need.key].spec.shape[0] for need in step.inputs if need.whole)
        if step.kernel.startswith("edit:"):
            # Over the width of the stream roundings add up as a random walk does.
            count += sum(4 * math.isqrt(steps[need.key].spec.shape[0]) for need in step.inputs if need.whole)
    return count


def _weights(step: Step, others: int) -> list[float]:
    settings = step.values
    if step.kernel != "combine":
        return [max([1.0, *(abs(w) for w in settings.get("weight", ()))])] * others
    coefficients = [abs(c) for c in settings["coefficients"]]
    return coefficients if settings["anchored"] else coefficients[1:]


def _low_rank(evaluator: Evaluator, step: Step, start: int, stop: int) -> Tensor:
    a, b = (evaluator.whole(need.key).double().abs() for need in step.inputs)
    settings, columns = step.values, step.spec.shape[-1]
    left, right = (a.T, b.T) if settings["transposed"] else (b, a)
    first, last = start // columns, -(-stop // columns)
    band = (left[first:last] @ right) * abs(settings["scale"])
    return band.reshape(-1)[start - first * columns : stop - first * columns]


def _coded(evaluator: Evaluator, step: Step, start: int, stop: int) -> Tensor:
    """|W| over the scale of each entry's block: Σ|terms| in units of the codes."""
    inner, scale = (need.key for need in step.inputs[:2])
    size, shape = magnitude(evaluator, inner, 0, step.spec.count), step.spec.shape
    return unrounded(size.reshape(shape), evaluator.whole(scale), step.values["block"]).reshape(-1)[start:stop]


def _edited(evaluator: Evaluator, step: Step, start: int, stop: int) -> Tensor:
    """|W| + strength · |Q| |Q|ᵀ |W|, |W| the magnitude of what is edited."""
    inner, frame = step.inputs[0].key, evaluator.whole(step.inputs[1].key).double().abs()
    strength = max([1.0, *(abs(value) for value in step.values.values() if isinstance(value, float))])
    columns = step.spec.shape[-1]
    first, last = start // columns, -(-stop // columns)
    size = magnitude(evaluator, inner, first * columns, last * columns).reshape(-1, columns)
    if step.kernel.endswith("@last"):
        along = size @ frame @ frame.T
    else:
        rows = torch.arange(first, last)
        inside = _inside(evaluator, step, frame)[rows // len(frame)]
        along = (frame[rows % len(frame), None] @ inside).squeeze(1)
    return (size + strength * along).reshape(-1)[start - first * columns : stop - first * columns]


def _inside(evaluator: Evaluator, step: Step, frame: Tensor) -> Tensor:
    """|Q|ᵀ |W| of every matrix of a tensor, [matrices, k, n]; measured once."""
    place = step.key, "magnitude inside"
    if place not in evaluator.known:
        columns, (residual, rank) = step.spec.shape[-1], frame.shape
        count = step.spec.count // columns
        total = frame.new_zeros(count // residual, rank, columns)
        at_once = max(_BAND // (columns * rank), 1)
        for first in range(0, count, at_once):
            rows = torch.arange(first, min(first + at_once, count))
            size = magnitude(evaluator, step.inputs[0].key, first * columns, (int(rows[-1]) + 1) * columns)
            part = frame[rows % residual, :, None] * size.reshape(-1, 1, columns)
            total.index_add_(0, rows // residual, part)
        evaluator.known[place] = total
    return evaluator.known[place]
