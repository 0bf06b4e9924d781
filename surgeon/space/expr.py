"""Expressions over checkpoints, as frozen data: a model, a combination, a merge, an edit, a reshape.

Checkpoints are points of a vector space. `+ - *` build one canonical `Combination`, so `a + 2*(b - c) - b` *is*
`a + b - 2*c`: cancelled inputs are never read. Nothing is read when an expression is built, and nothing here knows of
plans or engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

from surgeon.errors import Origin
from surgeon.space.coefficient import Coefficient
from surgeon.space.schedule import Schedule, Setting

if TYPE_CHECKING:
    from surgeon.artifacts.direction import Direction

Number = int | float | Fraction | Schedule | Coefficient
Settings = tuple[tuple[str, Setting], ...]
#: A merge's settings may be measured when the recipe runs.
MergeSettings = tuple[tuple[str, "Setting | DataFit"], ...]


_Value = TypeVar("_Value", Setting, "Setting | DataFit")


class Expr:
    """Base of all expressions; immutable, hashable, comparable. Arithmetic gives a `Combination`."""

    origin: Origin | None

    def __hash__(self) -> int:
        """Worked out once: expressions share parts, and a nested merge is looked up often."""
        known = self.__dict__.get("_hash")
        if known is None:
            known = hash((type(self), *(getattr(self, part.name) for part in fields(self) if part.compare)))  # type: ignore[arg-type]
            object.__setattr__(self, "_hash", known)
        return known

    def __add__(self, other: Expr | int) -> Expr:
        if isinstance(other, int) and other == 0:
            return self
        return combination([(self, ONE), (other, ONE)]) if isinstance(other, Expr) else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: Expr) -> Expr:
        return combination([(self, ONE), (other, -ONE)]) if isinstance(other, Expr) else NotImplemented

    def __neg__(self) -> Expr:
        return combination([(self, -ONE)])

    def __mul__(self, number: Number) -> Expr:
        if isinstance(number, Expr):
            return NotImplemented
        return combination([(self, Coefficient.of(number))])

    __rmul__ = __mul__

    def __truediv__(self, number: int | float | Fraction) -> Expr:
        return combination([(self, Coefficient(1 / Coefficient.of(number).constant))])


ONE = Coefficient(Fraction(1))


@dataclass(frozen=True)
class Model(Expr):
    """A checkpoint (mass 1) or a LoRA adapter (mass 0), by path or Hub id; which of the two is read when planning.

    `probe` is the command line's rule: a path if that path exists, else a Hub id. `base_model` is what an adapter's
    replaced tensors are differences from.
    """

    ref: str
    base_model: Expr | None = None
    probe: bool = field(default=False, compare=False)
    name: str = field(default="", compare=False)
    origin: Origin | None = field(default=None, compare=False)

    __hash__ = Expr.__hash__

    def __str__(self) -> str:
        return self.name or self.ref


@dataclass(frozen=True)
class Combination(Expr):
    """Σ coefficient · term; canonical: no nested combination, no term twice, none with coefficient zero."""

    terms: tuple[tuple[Expr, Coefficient], ...]
    origin: Origin | None = field(default=None, compare=False)

    __hash__ = Expr.__hash__

    def __str__(self) -> str:
        return " + ".join(f"{coefficient}*{term}" for term, coefficient in self.terms) or "0"


@dataclass(frozen=True)
class Member:
    """One model of a merge, with the settings that are its own."""

    of: Expr
    settings: MergeSettings = ()


@dataclass(frozen=True)
class Merge(Expr):
    """A registered merge method over several points."""

    method: str
    members: tuple[Member, ...]
    base_model: Expr | None = None
    settings: MergeSettings = ()
    semantics: str = "paper"
    name: str = field(default="", compare=False)
    origin: Origin | None = field(default=None, compare=False)

    __hash__ = Expr.__hash__

    def __str__(self) -> str:
        return self.name or f"{self.method}({', '.join(str(member.of) for member in self.members)})"


@dataclass(frozen=True)
class Fit:
    """A direction that is fitted when the recipe runs: accepted wherever a direction is.

    `fitter` names a registered fitter; `model` is what it is measured on, an input or the result of a step; `positive`
    and `negative` are contrast sets (files of JSON lines), `at` the residual point, ``own`` for one a block.
    """

    fitter: str
    model: Expr
    positive: str
    negative: str
    at: str = "own"
    settings: Settings = ()
    name: str = field(default="", compare=False)
    origin: Origin | None = field(default=None, compare=False)


@dataclass(frozen=True)
class DataFit:
    """What a merge takes of data, measured when the recipe runs: accepted wherever such an artifact is.

    `fit` is what is measured (``gram``, ``fisher``), `prompts` a file of JSON lines, or empty for the neutral text that
    comes with surgeon. It is measured on `model`; without one, on the member it is a setting of, or else on the base.
    """

    fit: str
    prompts: str = ""
    model: Expr | None = None
    origin: Origin | None = field(default=None, compare=False)


@dataclass(frozen=True)
class DirectionRef:
    """A direction as an edit uses it: a file, a `Direction` in hand or a `Fit`; `at` overrides where it is used.

    A `Fit` is measured where it is used: its own `at` becomes the one given.
    """

    source: str | Direction | Fit
    at: str = ""
    name: str = field(default="", compare=False)
    origin: Origin | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.source, Fit) and self.at:
            object.__setattr__(self, "source", replace(self.source, at=self.at))
            object.__setattr__(self, "at", "")


@dataclass(frozen=True)
class Edit(Expr):
    """A registered edit of the tensors that write the residual stream.

    `layers` limits it to blocks [first, end), `writers` to parts (attention, mlp, embed; empty for all); `tied` says
    what becomes of a tied embedding: ``untie``, ``both`` or ``skip``.
    """

    edit: str
    of: Expr
    directions: tuple[DirectionRef, ...] = ()
    settings: Settings = ()
    layers: tuple[int, int] | None = None
    writers: tuple[str, ...] = ()
    tied: str = "untie"
    allow_partial: bool = False
    name: str = field(default="", compare=False)
    origin: Origin | None = field(default=None, compare=False)

    __hash__ = Expr.__hash__

    def __str__(self) -> str:
        return self.name or f"{self.edit}({self.of})"


@dataclass(frozen=True)
class Part:
    """One operand of a reshape; `layers` takes blocks [first, end) of it alone, `targets` tensors by a pattern."""

    of: Expr
    layers: tuple[int, int] | None = None
    targets: str | None = None

    def __str__(self) -> str:
        which = f"{self.layers[0]}..{self.layers[1]}" if self.layers else self.targets
        return f"{self.of}[{which}]" if which else str(self.of)


@dataclass(frozen=True)
class Reshape(Expr):
    """A registered reshape: another table of tensors, made of one model or several, with the config change it implies.

    The side files are the first part's.
    """

    reshape: str
    parts: tuple[Part, ...]
    settings: Settings = ()
    name: str = field(default="", compare=False)
    origin: Origin | None = field(default=None, compare=False)

    __hash__ = Expr.__hash__

    def __str__(self) -> str:
        return self.name or f"{self.reshape}({', '.join(map(str, self.parts))})"


def combination(terms: Iterable[tuple[Expr, Coefficient]], origin: Origin | None = None) -> Expr:
    """The canonical combination of terms, in the order written; a single term at coefficient 1 is that term."""
    merged: dict[Expr, Coefficient] = {}
    for term, coefficient in _flat(terms):
        merged[term] = merged[term] + coefficient if term in merged else coefficient
    kept = tuple((term, coefficient) for term, coefficient in merged.items() if not coefficient.is_zero)
    if len(kept) == 1 and kept[0][1].is_number(1):
        return kept[0][0]
    return Combination(kept, origin)


def _flat(terms: Iterable[tuple[Expr, Coefficient]]) -> Iterator[tuple[Expr, Coefficient]]:
    for term, coefficient in terms:
        if isinstance(term, Combination):
            yield from ((inner, own * coefficient) for inner, own in term.terms)
        else:
            yield term, coefficient


def settings(values: Mapping[str, _Value]) -> tuple[tuple[str, _Value], ...]:
    """Settings in canonical order."""
    return tuple(sorted(values.items(), key=lambda item: item[0]))


def data_fits(merge: Merge) -> tuple[DataFit, ...]:
    """The fits among a merge's settings and its members'."""
    levels = (merge.settings, *(member.settings for member in merge.members))
    return tuple(value for level in levels for _, value in level if isinstance(value, DataFit))


def children(expr: Expr) -> tuple[Expr, ...]:
    """The expressions a node is made of, in order."""
    if isinstance(expr, Combination):
        return tuple(term for term, _ in expr.terms)
    if isinstance(expr, Merge):
        base = (expr.base_model,) if expr.base_model is not None else ()
        measured = (fit.model for fit in data_fits(expr) if fit.model is not None)
        return (*base, *(member.of for member in expr.members), *measured)
    if isinstance(expr, Model) and expr.base_model is not None:
        return (expr.base_model,)
    if isinstance(expr, Edit):
        fits = (use.source.model for use in expr.directions if isinstance(use.source, Fit))
        return (expr.of, *fits)
    if isinstance(expr, Reshape):
        return tuple(part.of for part in expr.parts)
    return ()


def walk(expr: Expr) -> Iterator[Expr]:
    """Every node below and including `expr`, each once, operands before what uses them."""
    seen: set[Expr] = set()

    def visit(node: Expr) -> Iterator[Expr]:
        if node in seen:
            return
        seen.add(node)
        for child in children(node):
            yield from visit(child)
        yield node

    yield from visit(expr)
