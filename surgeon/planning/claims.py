"""What each edit of a plan claims: ``everywhere``, of the whole stream, or ``own``, of the tensors it edits alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from surgeon.planning.edits import Edited
from surgeon.planning.promises import is_everywhere
from surgeon.planning.resolve import Resolver
from surgeon.space.expr import Edit, Expr, children

if TYPE_CHECKING:
    from surgeon.planning.plan import Plan
    from surgeon.planning.step import Target

_MEANING = {
    "everywhere": "the residual stream holds none of it at any point",
    "own": "these tensors write none of it; what others write stays in the stream",
}


@dataclass(frozen=True)
class Claim:
    """One edit of a plan. `scope` is what it reaches, `held` how many of its tensors are promised a zero at the end.

    `left` is the share of what was written along the directions that is left; None where it varies or is not known.
    """

    label: str
    edit: str
    along: tuple[tuple[str, str], ...]
    settings: Mapping[str, Any]
    scope: str
    edited: int
    writers: int
    held: int
    left: float | None
    notes: tuple[str, ...]

    @property
    def claim(self) -> str | None:
        """``everywhere``, ``own``, or None where nothing is claimed of the result."""
        return self.scope if self.held and self.held == self.edited else None

    def words(self) -> str:
        """What it does and what is claimed."""
        along = ", ".join(f"{name} at {at}" for name, at in self.along)
        values = "".join(f", {name} {_spelled(plain(value))}" for name, value in self.settings.items())
        does = f"{self.edit}{f' along {along}' if along else ''}{values}: {self.edited} of {self.writers} writers"
        return "; ".join([does, *self._effect(), *self.notes])

    def _effect(self) -> list[str]:
        if self.claim is not None:
            return [f"claim {self.claim}: {_MEANING[self.claim]}"]
        if self.held:
            return [f"scope {self.scope}; {self.held} of these tensors are promised to write none of it"]
        return [f"scope {self.scope}; {_remainder(self.left)}; nothing is claimed of the result"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "step": self.label, "edit": self.edit,
            "directions": [{"name": name, "at": at} for name, at in self.along],
            "settings": {name: plain(value) for name, value in self.settings.items()},
            "scope": self.scope, "claim": self.claim, "edited": self.edited, "writers": self.writers,
            "held": self.held, "left": self.left, "words": self.words(),
        }  # fmt: skip


def claims(plan: Plan) -> tuple[Claim, ...]:
    """The claims of the edits on the way to the result, in the order they are done."""
    resolver = Resolver(plan.sources)
    edits = dict.fromkeys(edits_below(plan.recipe.expr))
    return tuple(_claim(expr, node, plan) for expr in edits if isinstance(node := resolver(expr), Edited))


def edits_below(expr: Expr) -> Iterator[Edit]:
    """The edits a result is made by, not those of models that are only measured; operands first."""
    for child in (expr.of,) if isinstance(expr, Edit) else children(expr):
        yield from edits_below(child)
    if isinstance(expr, Edit):
        yield expr


def plain(value: Any) -> float | bool | str:
    """A setting, JSON-ready; one that varies is only said to."""
    if isinstance(value, bool | str):
        return value
    return float(value) if isinstance(value, Fraction | int | float) else "by layer or rule"


def _spelled(value: float | bool | str) -> str:
    return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else f"{value:g}"


def _claim(expr: Edit, node: Edited, plan: Plan) -> Claim:
    given = dict(expr.settings)
    settings = {name: given.get(name, parameter.default) for name, parameter in node.method.parameters.items()}
    notes = ("the tied head changes with the embedding",) * _both(expr, node)
    if aside := node.anatomy.aside():
        notes += (f"{len(aside)} tensors beside the language model stay as they are ({aside[0]} …)",)
    return Claim(
        str(expr),
        expr.edit,
        tuple((one.name, one.at) for one in node.along),
        settings,
        "everywhere" if is_everywhere(node) else "own",
        len(node.chosen),
        len(node.anatomy.writers()),
        sum(_holds(target, node) for target in plan.targets),
        _left(node, settings.get("strength")),
        notes,
    )


def _holds(target: Target, node: Edited) -> bool:
    """Whether the promise of a target is this edit's."""
    promise, place = target.promise, node.chosen.get(target.name)
    if promise is None or place is None or promise.edit != node.method.name:
        return False
    wanted = [(one.direction.digest, one.point(place)) for one in node.along]
    return [(direction.digest, point) for direction, point in promise.directions] == wanted


def _both(expr: Edit, node: Edited) -> bool:
    return expr.tied == "both" and node.anatomy.tied and node.anatomy.embed in node.chosen


def _left(node: Edited, strength: Any) -> float | None:
    """1 − strength, of an edit that grows linearly with it and removes all at 1."""
    if node.method.removes != {"strength": 1} or not isinstance(strength, Fraction | int | float):
        return None
    return 1.0 - float(strength)


def _remainder(left: float | None) -> str:
    if left is None:
        return "what is left differs from tensor to tensor"
    if left == 0:
        return "a later step changes these tensors again"
    if left == 1:
        return "nothing changes"
    if left == -1:
        return "a reflection: what is written along it changes its sign, none of it is removed"
    if left < 0:
        return f"what is written along it is reflected, {-left:g} times as large"
    return f"what is written along it is {'strengthened' if left > 1 else 'weakened'}, {left:g} times as large"
