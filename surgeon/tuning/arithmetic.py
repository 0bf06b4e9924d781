"""A recipe read as plain arithmetic, base + Σ cᵢ (xᵢ − base): what coefficients are learned for."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from surgeon.errors import RefusedError
from surgeon.planning.resolve import Resolver
from surgeon.planning.sources import Sources, open_sources
from surgeon.space.expr import ONE, Combination, Expr, Merge, Model, combination

_HINT = "write merge: task_arithmetic with base_model and models, or combine: base + 0.6*a + 0.6*b"


@dataclass(frozen=True)
class Expert:
    """One model of the arithmetic: its name, as the recipe has it (`of`), as a model (`point`), and its weight."""

    name: str
    of: Expr
    point: Expr
    weight: float


@dataclass(frozen=True, eq=False)
class Arithmetic:
    """A base and what is added to it."""

    base: Expr
    experts: tuple[Expert, ...]
    sources: Sources


def arithmetic(expr: Expr) -> Arithmetic:
    """The arithmetic a recipe's result is. RefusedError where it is something else, or has a single expert."""
    base, weighed = _parts(expr)
    sources = open_sources(expr)
    names = [str(of) for of, _ in weighed]
    if not isinstance(base, Model):
        hint = "write it with `surgeon apply`, and name the folder as the base model"
        raise RefusedError(f"the base is {base}; a model on disk is needed", origin=expr.origin, hint=hint)
    if len(weighed) < 2:
        found = names[0] if names else "none"
        raise RefusedError(f"coefficients weigh experts against each other; here is {found} alone", hint=_HINT)
    if len(set(names)) < len(names):
        raise RefusedError(f"two experts have one name: {', '.join(names)}", hint="give each a name in models:")
    resolver = Resolver(sources)
    standing = resolver.on(resolver(base))
    experts = []
    for name, (of, weight) in zip(names, weighed, strict=True):
        is_point = standing(of).mass.is_number(1)
        point = of if is_point else combination([(base, ONE), (of, ONE)])
        experts.append(Expert(name, of, point, float(weight)))
    return Arithmetic(base, tuple(experts), sources)


def _parts(expr: Expr) -> tuple[Expr, list[tuple[Expr, Fraction]]]:
    if isinstance(expr, Merge) and expr.method in ("task_arithmetic", "tuned") and expr.base_model is not None:
        shared = dict(expr.settings)
        scale = shared.get("lambda", Fraction(1))
        own = [dict(member.settings).get("weight", shared.get("weight", Fraction(1))) for member in expr.members]
        numbers = [number for number in own if isinstance(number, Fraction)]
        if isinstance(scale, Fraction) and len(numbers) == len(own) and not shared.get("normalize"):
            return expr.base_model, [(m.of, w * scale) for m, w in zip(expr.members, numbers, strict=True)]
        raise RefusedError("coefficients are learned from plain numbers as weights", origin=expr.origin, hint=_HINT)
    if isinstance(expr, Combination):
        first, coefficient = expr.terms[0]
        if all(not c.scheduled for _, c in expr.terms) and not coefficient.is_zero:
            return first, [(term, c.constant) for term, c in expr.terms[1:]]
        raise RefusedError("coefficients are learned from plain numbers as weights", origin=expr.origin, hint=_HINT)
    message = f"coefficients are learned for plain arithmetic; the result of this recipe is {expr}"
    raise RefusedError(message, origin=expr.origin, hint=_HINT)
