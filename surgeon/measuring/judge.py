"""What the examination of one tensor amounts to: right to some rounding, wrong in a way that has a name, or open."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from surgeon.measuring.examine import Examined
from surgeon.measuring.fit import Strength
from surgeon.measuring.rounding import cast
from surgeon.planning.evaluation import measured
from surgeon.space.kernels import kernel_named
from surgeon.space.magnitude import KthMagnitude
from surgeon.tensors import FLOATS

NOT_APPLIED = "not applied: equals what the recipe starts from"
STRENGTH = "the strength is off"

#: A strength this far off must be found; what is not resolved to it is open.
RESOLUTION = 0.01
_SIGMAS = 4.0
_FLOOR = 0.001
#: A named fault must leave at most this share of the squared error that the recipe itself leaves.
_NAMED = 0.25
#: Entries that a selection may put on the other side of its threshold when the work was done in 16 bits.
_ACROSS = 1e-4


@dataclass(frozen=True)
class Judgement:
    """`grade`: exact, rounding, other arithmetic, wrong. `open` tells that only all tensors together can decide."""

    name: str
    grade: str
    text: str = ""
    detail: str = ""
    strengths: tuple[tuple[str, Strength, float], ...] = ()
    open: bool = False
    visible: bool = True


def judge(seen: Examined) -> Judgement:
    """The judgement of a tensor that is not bit for bit what the recipe gives."""
    name, visible = seen.anatomy.target.name, seen.visible > 0
    if seen.nans:
        return Judgement(name, "wrong", "holds NaN where the recipe gives numbers", f"{seen.nans} entries")
    if not seen.beyond_rounding:
        return Judgement(name, "rounding", visible=visible)
    for replay in seen.replays:
        if not seen.beyond_replay[replay]:
            return Judgement(name, "other arithmetic", str(replay), visible=visible)
    for dtype in seen.narrow:
        strengths = _strengths(seen, dtype)
        inside = seen.beyond_narrow[dtype] <= _allowed_across(seen) and not seen.beyond_reach[dtype]
        if inside and not any(off(*one[1:]) for one in strengths):
            unresolved = any(not resolved(*one[1:]) for one in strengths)
            return Judgement(
                name, "other arithmetic", f"every step in {FLOATS[dtype]}", "", strengths, unresolved, visible
            )
    return _fault(seen)


def _strengths(seen: Examined, dtype: str) -> tuple[tuple[str, Strength, float], ...]:
    """Of each term that is there: label, strength, and the excess that rounding its coefficient explains."""
    found = []
    for term, strength in zip(seen.anatomy.terms, seen.narrow_fits[dtype].strengths(), strict=True):
        factors = torch.tensor([factor for factor in term.factors if factor], dtype=torch.float64)
        allowed = float((cast(factors, dtype) / factors - 1).abs().sum())
        if strength.error != float("inf"):
            found.append((term.label, strength, allowed))
    return tuple(found)


def off(strength: Strength, allowed: float) -> bool:
    """Whether a strength differs from the recipe's by more than rounding its coefficient and chance explain."""
    return abs(strength.excess) > allowed + _FLOOR + _SIGMAS * strength.error


def resolved(strength: Strength, allowed: float) -> bool:
    """Whether an error of `RESOLUTION` would show."""
    return allowed + _FLOOR + _SIGMAS * strength.error < RESOLUTION


def _allowed_across(seen: Examined) -> float:
    steps = measured(seen.anatomy.steps, seen.anatomy.target.key)
    selects = any(isinstance(s, KthMagnitude) for step in steps for s in kernel_named(step.kernel).statistics.values())
    return _ACROSS * seen.entries if selects else 0.0


def _fault(seen: Examined) -> Judgement:
    """The fault that explains the tensor best, or how far off it is."""
    name, square = seen.anatomy.target.name, seen.fit.square
    if seen.at_start == seen.entries:
        return Judgement(name, "wrong", NOT_APPLIED)
    best = min(seen.misses, key=lambda text: seen.misses[text], default="")
    if best and seen.misses[best] <= min(_NAMED, 2 * seen.fit.unexplained + 1e-4) * square:
        return Judgement(name, "wrong", best)
    strengths = tuple(
        (term.label, strength, 0.0)
        for term, strength in zip(seen.anatomy.terms, seen.fit.strengths(), strict=True)
        if off(strength, 0.0)
    )
    if strengths and _explains(seen):
        return Judgement(name, "wrong", STRENGTH, "", strengths)
    detail = f"{seen.differing} of {seen.entries} entries, at most by {seen.largest:.3g}"
    return Judgement(name, "wrong", "is not what the recipe gives, and no known fault explains it", detail)


def _explains(seen: Examined) -> bool:
    """Whether strengths account for the error: far beyond chance, and not a few entries that were tampered with."""
    return any(abs(s.excess) > 8 * s.error for s in seen.fit.strengths()) and seen.differing > 0.002 * seen.entries
