"""One tensor of a foreign result that is not bit for bit what the recipe gives: how it differs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from surgeon.measuring.choices import other_choices, selections
from surgeon.measuring.fit import Fit
from surgeon.measuring.magnitude import magnitude, roundings
from surgeon.measuring.recompute import Bench
from surgeon.measuring.replays import Hypothesis, Replay, hypotheses, narrow_dtypes, replays
from surgeon.measuring.rounding import between, cast, representable, ulp, unit
from surgeon.measuring.terms import Anatomy
from surgeon.planning.evaluation import Evaluator, ranges
from surgeon.store.header import Stored

_BLOCK = 1 << 17

#: Roundings of one change in 16-bit work: difference, coefficient, product, divisor, sum of the changes.
_ROUNDINGS = 5


@dataclass
class Examined:
    """Counts over a whole tensor: of entries outside each bound, and Σ(found − predicted)² of each hypothesis.

    `beyond_reach` counts those that no choice and no vote of the changes together could give.
    """

    anatomy: Anatomy
    replays: tuple[Replay, ...]
    hypotheses: tuple[Hypothesis, ...]
    fit: Fit
    narrow: tuple[str, ...]
    narrow_fits: dict[str, Fit]
    entries: int = 0
    differing: int = 0
    nans: int = 0
    beyond_rounding: int = 0
    visible: int = 0
    beyond_replay: dict[Replay, int] = field(default_factory=dict)
    beyond_narrow: dict[str, int] = field(default_factory=dict)
    beyond_reach: dict[str, int] = field(default_factory=dict)
    misses: dict[str, float] = field(default_factory=dict)
    at_start: int = 0
    largest: float = 0.0

    def narrowed(self, dtype: str) -> None:
        """Note that the values found are not all numbers of a dtype, so the work was not done in it."""
        self.narrow = tuple(d for d in self.narrow if d != dtype)


def examine(bench: Bench, anatomy: Anatomy, stored: Stored) -> Examined:
    """Look at every block of a tensor against every bound and hypothesis."""
    dtype, terms = stored.spec.dtype, anatomy.terms
    narrow = narrow_dtypes(anatomy, dtype)
    fits = {dtype: Fit(len(terms)) for dtype in narrow}
    seen = Examined(anatomy, replays(anatomy, dtype), hypotheses(terms), Fit(len(terms)), narrow, fits)
    evaluator = bench.evaluator(anatomy.target, anatomy.steps)
    rounded = {d: bench.evaluator(anatomy.target, anatomy.steps, rounded=d) for d in narrow}
    for start, stop in ranges(stored.spec.count, _BLOCK):
        block = _Block.of(anatomy, evaluator, bench.stored(stored, start, stop).double(), dtype, (start, stop))
        _count(seen, block)
        inside = _rounding(seen, block, evaluator)
        for d in seen.narrow:
            _narrow(seen, block, rounded[d], d, inside)
        _replayed(seen, block)
        _hypotheses(seen, block, evaluator)
    return seen


@dataclass(frozen=True)
class _Block:
    """One block of the tensor: what was found there, what the recipe gives, and what it is made of."""

    span: tuple[int, int]
    dtype: str
    found: Tensor
    value: Tensor
    begin: Tensor
    changes: list[Tensor]
    size: Tensor
    slack: Tensor

    @classmethod
    def of(cls, anatomy: Anatomy, evaluator: Evaluator, found: Tensor, dtype: str, span: tuple[int, int]) -> _Block:
        """Compute what the recipe gives on a block; `slack` is the error of any float32 computation of it."""
        key = anatomy.target.key
        value = evaluator.value(key, *span).double().cpu()
        begin, changes = anatomy.values(evaluator, *span)
        size = magnitude(evaluator, key, *span).cpu()
        slack = roundings(anatomy.steps, key) * unit("F32") * size + ulp(value, "F32")
        return cls(span, dtype, found, value, begin.cpu(), [change.cpu() for change in changes], size, slack)


def _count(seen: Examined, block: _Block) -> None:
    found, expected, begin = block.found, cast(block.value, block.dtype), cast(block.begin, block.dtype)
    seen.entries += found.numel()
    seen.nans += int((found.isnan() & ~expected.isnan()).sum())
    seen.differing += int(((found != expected) & ~(found.isnan() & expected.isnan())).sum())
    seen.visible += int((expected != begin).sum())
    seen.at_start += int((found == begin).sum())
    residual = _finite(found - expected)
    seen.largest = max(seen.largest, float(residual.abs().max()))
    seen.fit.add(residual, block.changes)


def _rounding(seen: Examined, block: _Block, evaluator: Evaluator) -> Tensor:
    """Which entries are within one rounding, whichever of equal entries were selected."""
    key = seen.anatomy.target.key
    inside = _within(block, block.value, block.slack)
    if not bool(inside.all()) and selections(evaluator, key):
        for other in other_choices(evaluator, key, *block.span, 0.0):
            inside |= _within(block, other.cpu(), block.slack)
    seen.beyond_rounding += int((~inside).sum())
    return inside


def _narrow(seen: Examined, block: _Block, evaluator: Evaluator, dtype: str, inside: Tensor) -> None:
    """Entries beyond the roundings of work done in a narrow dtype, on inputs rounded to it."""
    if not representable(torch.nan_to_num(block.found, 0.0), dtype):
        seen.narrowed(dtype)
        return
    key = seen.anatomy.target.key
    value = evaluator.value(key, *block.span).double().cpu()
    size = seen.anatomy.rounded_size(evaluator, *block.span).cpu()
    wide = block.slack + _ROUNDINGS * unit(dtype) * size
    allowed = inside | _within(block, value, wide)
    if not bool(allowed.all()) and selections(evaluator, key):
        for other in other_choices(evaluator, key, *block.span, 4 * unit(dtype)):
            allowed |= _within(block, other.cpu(), wide)
    seen.beyond_narrow[dtype] = seen.beyond_narrow.get(dtype, 0) + int((~allowed).sum())
    reach = size + wide + ulp(value, block.dtype)
    far = int((~allowed & ((block.found - block.begin).abs() > reach)).sum())
    seen.beyond_reach[dtype] = seen.beyond_reach.get(dtype, 0) + far
    seen.narrow_fits[dtype].add(_finite(block.found - cast(value, block.dtype)), block.changes)


def _within(block: _Block, value: Tensor, slack: Tensor) -> Tensor:
    return between(block.found, cast(value - slack, block.dtype), cast(value + slack, block.dtype))


def _replayed(seen: Examined, block: _Block) -> None:
    terms = seen.anatomy.terms
    for replay in seen.replays:
        low, high = (
            replay(block.begin, [change + sign * block.slack for change in block.changes], terms, block.dtype)
            for sign in (-1, 1)
        )
        beyond = int((~between(block.found, low, high)).sum())
        seen.beyond_replay[replay] = seen.beyond_replay.get(replay, 0) + beyond


def _hypotheses(seen: Examined, block: _Block, evaluator: Evaluator) -> None:
    turned = [
        None if term.turned is None else evaluator.value(term.turned, *block.span).double().cpu() * term.coefficient
        for term in seen.anatomy.terms
    ]
    for hypothesis in seen.hypotheses:
        miss = _finite(block.found - hypothesis(block.begin, block.changes, turned, block.dtype))
        seen.misses[hypothesis.text] = seen.misses.get(hypothesis.text, 0.0) + float((miss * miss).sum())


def _finite(values: Tensor) -> Tensor:
    return torch.nan_to_num(values, 0.0, 0.0, 0.0)
