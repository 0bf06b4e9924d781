"""One tensor of a foreign result that is not bit for bit what the recipe gives: how it differs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from surgeon.engine.measure import measure_tensor
from surgeon.measuring.choices import other_choices
from surgeon.measuring.fit import Fit
from surgeon.measuring.magnitude import slack
from surgeon.measuring.recompute import Bench
from surgeon.measuring.rounding import cast, near, representable, ulp, unit
from surgeon.measuring.terms import Anatomy, changes
from surgeon.planning.evaluation import Evaluator, ranges
from surgeon.planning.step import below
from surgeon.store.header import Stored

_BLOCK = 1 << 17
_NARROW = ("BF16", "F16")

#: Roundings of one change in 16-bit work: difference, coefficient, product, divisor, sum of the changes.
_ROUNDINGS = 5


@dataclass
class Seen:
    """Counts over a whole tensor. The dtype of the work is a key: '' is float32, others are the narrow ones.

    `outside` are entries beyond the roundings of such work, `far` those that no choice and no vote of the changes
    together could give. `nearest` are those that rounding to nearest gives. `fits` has the terms and after them the
    mistakes.
    """

    anatomy: Anatomy
    fits: dict[str, Fit]
    entries: int = 0
    differing: int = 0
    nans: int = 0
    visible: int = 0
    at_start: int = 0
    nearest: int = 0
    largest: float = 0.0
    outside: Counter[str] = field(default_factory=Counter)
    far: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Block:
    """One block of the tensor: what was found there, and what the recipe gives, to any float32 computation's error."""

    span: tuple[int, int]
    dtype: str
    found: Tensor
    begin: Tensor
    value: Tensor
    slack: Tensor
    changes: list[Tensor]


def examine(bench: Bench, anatomy: Anatomy, stored: Stored) -> Seen:
    """Look at every block of a tensor against what work in every dtype that it may have been done in could give."""
    dtype, key = stored.spec.dtype, anatomy.key
    inputs = (step.stored.spec.dtype for step in below(anatomy.steps, key) if step.stored is not None)
    narrow = [name for name in dict.fromkeys((dtype, *inputs)) if name in _NARROW]
    terms = (*anatomy.terms, *anatomy.mistakes.values())
    seen = Seen(anatomy, {name: Fit(len(terms)) for name in ("", *narrow)})
    evaluator = bench.evaluator(key, anatomy.steps)
    for mistake in anatomy.mistakes.values():
        measure_tensor(evaluator, mistake.key, _BLOCK, lambda count: None)
    rounded = {name: bench.evaluator(key, anatomy.steps, rounded=name) for name in narrow}
    for span in ranges(stored.spec.count, _BLOCK):
        value, begin = (evaluator.value(one, *span).double().cpu() for one in (key, anatomy.start))
        error, found = slack(evaluator, key, value, *span), bench.stored(stored, *span).double()
        block = _Block(span, dtype, found, begin, value, error, changes(evaluator, terms, begin, span))
        _count(seen, block)
        exact = value if anatomy.exact == key else evaluator.value(anatomy.exact, *span).double().cpu()
        seen.nearest += int((found == cast(exact, dtype)).sum())
        inside = near(found, value, error, dtype)
        if not bool(inside.all()):
            for other in other_choices(evaluator, key, span, 0.0):
                inside |= near(found, other, error, dtype)
        seen.outside[""] += int((~inside).sum())
        for name in narrow:
            _narrow(seen, block, rounded[name], name, inside)
    return seen


def _count(seen: Seen, block: _Block) -> None:
    found, expected, begin = block.found, cast(block.value, block.dtype), cast(block.begin, block.dtype)
    seen.entries += found.numel()
    seen.nans += int((found.isnan() & ~expected.isnan()).sum())
    seen.differing += int(((found != expected) & ~(found.isnan() & expected.isnan())).sum())
    seen.visible += int((expected != begin).sum())
    seen.at_start += int((found == begin).sum())
    residual = _finite(found - expected)
    seen.largest = max(seen.largest, float(residual.abs().max()))
    seen.fits[""].add(residual, block.changes)


def _narrow(seen: Seen, block: _Block, evaluator: Evaluator, dtype: str, inside: Tensor) -> None:
    """Entries beyond the roundings of work done in a narrow dtype, on inputs rounded to it or not.

    Where the values found are not all numbers of it, only the changes were made in it, and not their last sum.
    """
    key, found = seen.anatomy.key, block.found
    size = torch.zeros_like(found)
    for change in changes(evaluator, seen.anatomy.members, block.begin, block.span):
        size += change.abs()
    if representable(_finite(found), dtype):
        size += seen.anatomy.on_start * block.begin.abs()
    value = evaluator.value(key, *block.span).double().cpu()
    wide = block.slack + _ROUNDINGS * unit(dtype) * size
    allowed = inside | near(found, value, wide, block.dtype) | near(found, block.value, wide, block.dtype)
    if not bool(allowed.all()):
        for other in other_choices(evaluator, key, block.span, 4 * unit(dtype)):
            allowed |= near(found, other, wide, block.dtype)
    reach = size + wide + ulp(value, block.dtype)
    seen.outside[dtype] += int((~allowed).sum())
    seen.far[dtype] += int((~allowed & ((found - block.begin).abs() > reach)).sum())
    seen.fits[dtype].add(_finite(found - cast(value, block.dtype)), block.changes)


def _finite(values: Tensor) -> Tensor:
    return torch.nan_to_num(values, 0.0, 0.0, 0.0)
