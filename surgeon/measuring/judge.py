"""What the examination of one tensor amounts to: right to some rounding, or wrong in a way that has a name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from surgeon.measuring.choices import selections
from surgeon.measuring.examine import Seen
from surgeon.measuring.fit import Strength
from surgeon.measuring.rounding import cast
from surgeon.measuring.terms import Term
from surgeon.tensors import FLOATS

NOT_APPLIED = "not applied: equals what the recipe starts from"
STRENGTH = "the strength is off"
NAN = "holds NaN where the recipe gives numbers"
NEAREST = "is rounded to nearest; the recipe asks for compensated rounding"

#: A named fault must leave at most this share of the squared error that the recipe itself leaves.
_NAMED = 0.25
#: Entries that a selection may put on the other side of its threshold when the work was done in 16 bits.
_ACROSS = 1e-4


@dataclass(frozen=True)
class Judgement:
    """`grade`: untouched, exact, rounding, other arithmetic, wrong. `visible`: the change shows in the dtype."""

    name: str
    grade: str
    text: str = ""
    detail: str = ""
    strengths: tuple[Strength, ...] = ()
    visible: bool = True


def judge(name: str, seen: Seen) -> Judgement:
    """The judgement of a tensor that is not bit for bit what the recipe gives."""
    visible = seen.visible > 0
    if seen.nans:
        return Judgement(name, "wrong", NAN, f"{seen.nans} entries")
    if not seen.outside[""]:
        if seen.anatomy.exact != seen.anatomy.key and seen.nearest == seen.entries:
            return Judgement(name, "wrong", NEAREST)
        return Judgement(name, "rounding", visible=visible)
    across = _ACROSS * seen.entries if selections(seen.anatomy.steps, seen.anatomy.key) else 0
    for dtype in filter(None, seen.fits):
        strengths = _strengths(seen, dtype)
        inside = seen.outside[dtype] <= across and not seen.far[dtype]
        if inside and not any(one.off for one in strengths):
            return Judgement(name, "other arithmetic", f"steps in {FLOATS[dtype]}", "", strengths, visible)
    return _fault(name, seen)


def _strengths(seen: Seen, dtype: str) -> tuple[Strength, ...]:
    """Of each term that is there, with the excess that rounding its coefficient to a dtype explains."""
    terms, found = seen.anatomy.terms, []
    # The mistakes at the end of the excesses are not fitted.
    for term, excess, error in zip(terms, *seen.fits[dtype].solved(len(terms)), strict=False):
        factors = torch.tensor([factor for factor in term.factors if factor], dtype=torch.float64)
        allowed = float((cast(factors, dtype) / factors - 1).abs().sum()) if dtype else 0.0
        if error != float("inf"):
            found.append(Strength(term.label, float(excess), float(error), allowed))
    return tuple(found)


def _fault(name: str, seen: Seen) -> Judgement:
    """The fault that explains the tensor best, or how far off it is."""
    if seen.at_start == seen.entries:
        return Judgement(name, "wrong", NOT_APPLIED)
    fit, terms = seen.fits[""], seen.anatomy.terms
    missed = {text: fit.missed(excess) for text, excess in _faults(seen)}
    best = min(missed, key=lambda text: missed[text])
    if missed[best] <= min(_NAMED, 2 * fit.missed(fit.solved(len(terms))[0].tolist()) + 1e-4):
        return Judgement(name, "wrong", best)
    strengths = _strengths(seen, "")
    # Far beyond chance, and not a few entries that were tampered with.
    explains = any(abs(one.excess) > 8 * one.error for one in strengths) and seen.differing > 0.002 * seen.entries
    if explains and (strong := tuple(one for one in strengths if one.off)):
        return Judgement(name, "wrong", STRENGTH, "", strong)
    detail = f"{seen.differing} of {seen.entries} entries, at most by {seen.largest:.3g}"
    return Judgement(name, "wrong", "is not what the recipe gives, and no known fault explains it", detail)


def _faults(seen: Seen) -> Iterator[tuple[str, list[float]]]:
    """The faults that are looked for by name, each with the excess of every term, those of the mistakes after them."""
    terms, mistakes = seen.anatomy.terms, seen.anatomy.mistakes
    none = [0.0] * (len(terms) + len(mistakes))
    yield NOT_APPLIED, [-1.0] * len(terms) + [0.0] * len(mistakes)
    for place, term in enumerate(terms):
        for factor, text in _factors(term).items():
            yield f"{term.label}: {text}", [*none[:place], factor - 1, *none[place + 1 :]]
        if place in mistakes:
            excess = none.copy()
            excess[place], excess[len(terms) + list(mistakes).index(place)] = -1.0, 1.0
            yield f"{term.label}: {mistakes[place].label}", excess


def _factors(term: Term) -> dict[float, str]:
    """The wrong factors that have a name; the first name of a factor counts, and 1 is not wrong."""
    found = {1.0: "", 0.0: "not applied", -1.0: "the sign is flipped"}
    if scale := term.scale:
        found.setdefault(1 / scale, f"the scale α/r = {scale:g} is missing (the change is ×{1 / scale:g})")
        found.setdefault(scale, f"the scale α/r = {scale:g} is applied twice (the change is ×{scale:g})")
        found.setdefault(-1 / scale, f"the scale α/r = {scale:g} is missing and the sign flipped")
    if weight := term.coefficient:
        found.setdefault(1 / weight, f"the coefficient {weight:g} is missing (the change is ×{1 / weight:g})")
    for factor in (2.0, 0.5):
        found.setdefault(factor, f"the change is ×{factor:g}")
    del found[1.0]
    return found
