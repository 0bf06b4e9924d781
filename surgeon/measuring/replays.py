"""The same recipe as other tools compute it: which roundings happen on the way, besides the last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from surgeon.measuring.rounding import cast
from surgeon.measuring.terms import Anatomy, Term
from surgeon.planning.step import below
from surgeon.tensors import FLOATS

NARROW = ("BF16", "F16")


@dataclass(frozen=True)
class Replay:
    """Work in dtype `work`: the start and every sum rounded to it; every change rounded to `change`.

    `twice`: a low-rank product is rounded before its scale is applied, and again after.
    """

    work: str
    change: str
    twice: bool

    def __str__(self) -> str:
        return f"the changes rounded to {FLOATS[self.change]}, their sum to {FLOATS[self.work]}"

    def __call__(self, start: Tensor, changes: Sequence[Tensor], terms: Sequence[Term], dtype: str) -> Tensor:
        """What it gives, stored in `dtype`. It never falls where a change grows: ends of an interval give its ends."""
        total = cast(start, self.work)
        for change, term in zip(changes, terms, strict=True):
            factor = term.coefficient * (term.scale or 1.0)
            if self.twice and factor:
                change = cast(change / factor, self.change) * factor
            total = cast(total + cast(change, self.change), self.work)
        return cast(total, dtype)


def replays(anatomy: Anatomy, dtype: str) -> tuple[Replay, ...]:
    """The replays that a result stored in `dtype` may come from: PEFT's on a CPU and on an accelerator."""
    found = narrow_dtypes(anatomy, dtype)
    works = dict.fromkeys((dtype, *_stored(anatomy)))
    kinds = [
        Replay(work, change, twice)
        for work in works
        for change in ("F32", *found)
        for twice in (False, True)
        if not (twice and change == "F32")
    ]
    return tuple(kinds) if anatomy.terms else ()


def narrow_dtypes(anatomy: Anatomy, dtype: str) -> tuple[str, ...]:
    """The 16-bit dtypes among the inputs and the result: those that the work may have been done in."""
    return tuple(d for d in dict.fromkeys((dtype, *_stored(anatomy))) if d in NARROW)


def _stored(anatomy: Anatomy) -> Iterator[str]:
    yield from (s.stored.spec.dtype for s in below(anatomy.steps, anatomy.target.key) if s.stored is not None)


@dataclass(frozen=True)
class Hypothesis:
    """A way to get it wrong: each change taken so many times; `turned` is the change that is transposed."""

    text: str
    factors: tuple[float, ...]
    turned: int | None = None

    def __call__(self, start: Tensor, changes: Sequence[Tensor], turned: Sequence[Tensor | None], dtype: str) -> Tensor:
        """What it gives, stored in `dtype`."""
        total = start
        for index, (factor, change) in enumerate(zip(self.factors, changes, strict=True)):
            other = turned[index]
            total = total + factor * (other if index == self.turned and other is not None else change)
        return cast(total, dtype)


def hypotheses(terms: Sequence[Term]) -> tuple[Hypothesis, ...]:
    """The faults that are looked for by name."""
    count = len(terms)
    found = [Hypothesis("not applied: equals what the recipe starts from", (0.0,) * count)]
    for index, term in enumerate(terms):
        for text, factor in _factors(term):
            factors = tuple(factor if place == index else 1.0 for place in range(count))
            found.append(Hypothesis(f"{term.label}: {text}", factors))
        if term.turned is not None:
            found.append(Hypothesis(f"{term.label}: the update is transposed", (1.0,) * count, index))
    return tuple(found)


def _factors(term: Term) -> Iterator[tuple[str, float]]:
    yield "not applied", 0.0
    yield "the sign is flipped", -1.0
    known = {1.0, 0.0, -1.0}
    scale = term.scale
    if scale:
        for text, factor in (
            (f"the scale α/r = {scale:g} is missing (the change is ×{1 / scale:g})", 1 / scale),
            (f"the scale α/r = {scale:g} is applied twice (the change is ×{scale:g})", scale),
            (f"the scale α/r = {scale:g} is missing and the sign flipped", -1 / scale),
        ):
            if factor not in known:
                known.add(factor)
                yield text, factor
    weight = term.coefficient
    if weight and 1 / weight not in known:
        known.add(1 / weight)
        yield f"the coefficient {weight:g} is missing (the change is ×{1 / weight:g})", 1 / weight
    yield from ((f"the change is ×{factor:g}", factor) for factor in (2.0, 0.5) if factor not in known)
