"""Other choices a method may make where a rounding decides: which of nearly equal entries are kept, which sign wins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor

from surgeon.planning.evaluation import Evaluator, measured
from surgeon.planning.step import Key, Step
from surgeon.space.kernels import kernel_named
from surgeon.space.magnitude import KthMagnitude

_ALL_TIES, _NO_TIES = (1 << 62, 0), (-1, 0)
_MOST = 5


def selections(steps: Mapping[Key, Step], key: Key) -> list[tuple[Key, str]]:
    """The selections below a value, as keys of what an evaluator knows."""
    return [
        (step.key, name)
        for step in measured(steps, key)
        for name, statistic in kernel_named(step.kernel).statistics.items()
        if isinstance(statistic, KthMagnitude)
    ]


def other_choices(evaluator: Evaluator, key: Key, span: tuple[int, int], near: float) -> Iterator[Tensor]:
    """The values of a block for every way to keep or drop, model by model, the entries near its threshold.

    `near` is relative: 0 means the entries equal to it alone. Else also those of every way to round the weights, which
    decides a vote that is nearly even.
    """
    places, steps = selections(evaluator.steps, key), evaluator.steps
    for place in places:
        kept = evaluator.known[place]
        for way in _ways(len(kept.models), (True, False)):
            pushed = tuple(_pushed(model, keep, near) for model, keep in zip(kept.models, way, strict=True))
            evaluator.known[place] = replace(kept, models=pushed)
            yield evaluator.value(key, *span).double().cpu()
        evaluator.known[place] = kept
    step = steps[key]
    weights = step.values.get("weight", ()) if places and near else ()
    for way in _ways(len(weights), (-near / 2, near / 2)) if weights else ():
        moved = tuple(weight * (1 + change) for weight, change in zip(weights, way, strict=True))
        settings = tuple(sorted((dict(step.values) | {"weight": moved}).items()))
        evaluator.steps = {**steps, key: step._replace(settings=settings)}
        yield evaluator.value(key, *span).double().cpu()
    evaluator.steps = steps


def _ways(count: int, options: tuple[Any, Any]) -> Iterator[tuple[Any, ...]]:
    """Every way to choose one of two for each; only the two that are alike where that would be too many."""
    yield from product(options, repeat=count) if count <= _MOST else ((option,) * count for option in options)


def _pushed(model: Any, keep: bool, near: float) -> Any:
    """One model's selection with all that is near its threshold kept, or dropped."""
    bits = model.bits
    if bits >= 0:
        threshold = float(np.int32(bits).view(np.float32)) * (1 - near if keep else 1 + near)
        bits = int(np.float32(threshold).view(np.int32))
    return replace(model, bits=bits, last=_ALL_TIES if keep else _NO_TIES)
