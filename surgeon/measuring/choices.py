"""Other choices a method may make where a rounding decides: which of nearly equal entries are kept, which sign wins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor

from surgeon.planning.evaluation import Evaluator, measured
from surgeon.planning.step import Key
from surgeon.space.kernels import kernel_named
from surgeon.space.magnitude import KthMagnitude

_ALL_TIES, _NO_TIES = (1 << 62, 0), (-1, 0)
_MOST = 5


def selections(evaluator: Evaluator, key: Key) -> list[tuple[Key, str]]:
    """The selections below a value, as keys of what the evaluator knows."""
    return [
        (step.key, name)
        for step in measured(evaluator.steps, key)
        for name, statistic in kernel_named(step.kernel).statistics.items()
        if isinstance(statistic, KthMagnitude)
    ]


def other_choices(evaluator: Evaluator, key: Key, start: int, stop: int, near: float) -> Iterator[Tensor]:
    """The values of a block for every way to keep or drop, model by model, the entries near its threshold.

    `near` is relative: 0 means the entries equal to it alone. Else also those of every way to round the weights, which
    decides a vote that is nearly even.
    """
    kept = dict(evaluator.known)
    try:
        for place in selections(evaluator, key):
            for known in _variants(kept[place], near):
                evaluator.known[place] = known
                yield evaluator.value(key, start, stop).double()
            evaluator.known[place] = kept[place]
    finally:
        evaluator.known.update(kept)
    if near:
        yield from _other_votes(evaluator, key, start, stop, near)


def _other_votes(evaluator: Evaluator, key: Key, start: int, stop: int, near: float) -> Iterator[Tensor]:
    steps, step = evaluator.steps, evaluator.steps[key]
    weights = step.values.get("weight", ())
    ways = product((-1, 1), repeat=len(weights)) if 0 < len(weights) <= _MOST else ()
    try:
        for way in ways:
            moved = tuple(weight * (1 + near / 2 * sign) for weight, sign in zip(weights, way, strict=True))
            settings = tuple(sorted((dict(step.values) | {"weight": moved}).items()))
            evaluator.steps = {**steps, key: step._replace(settings=settings)}
            yield evaluator.value(key, start, stop).double()
    finally:
        evaluator.steps = steps


def _variants(known: Any, near: float) -> Iterator[Any]:
    models = len(known.models)
    ways = product((True, False), repeat=models) if models <= _MOST else [(True,) * models, (False,) * models]
    for way in ways:
        yield replace(known, models=tuple(map(_pushed, known.models, way, [near] * models)))


def _pushed(model: Any, keep: bool, near: float) -> Any:
    """One model's selection with all that is near its threshold kept, or dropped."""
    bits = _moved(model.bits, 1 - near if keep else 1 + near)
    return replace(model, bits=bits, last=_ALL_TIES if keep else _NO_TIES)


def _moved(bits: int, factor: float) -> int:
    """The bits of a threshold times a factor; what keeps everything stays so."""
    if bits < 0:
        return bits
    moved = np.float32(float(np.int32(bits).view(np.float32)) * factor)
    return int(moved.view(np.int32))
