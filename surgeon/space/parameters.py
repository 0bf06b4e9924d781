"""The words a merge method's signature is written in, and what is read from it."""

from __future__ import annotations

import enum
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar

from torch import Tensor

from surgeon.artifacts import fisher, gram
from surgeon.artifacts.artifact import Artifact
from surgeon.artifacts.per_tensor import PerTensor
from surgeon.space.expr import DataFit
from surgeon.space.noise import Noise
from surgeon.space.schedule import Scalar
from surgeon.space.statistics import Statistic


class Operand(enum.Enum):
    """Tensors a method asks for: float32, the models' axis first."""

    TASK_VECTORS = "task vectors"
    MODELS = "models"
    VECTORS = "task vectors or models"
    BASE = "base model"
    PER_MODEL = "per model"
    WEIGHT = "weight"
    SUBSPACE = "subspace"


_T = TypeVar("_T")

#: [model, …]: each model minus the base; the base is added to the result.
TaskVectors = Annotated[Tensor, Operand.TASK_VECTORS]
#: [model, …]: the models themselves.
Models = Annotated[Tensor, Operand.MODELS]
#: [model, …]: each model minus the base where a recipe names one (and the base added to the result), else the models.
Vectors = Annotated[Tensor, Operand.VECTORS]
#: […]: the base model, which is not among the models.
Base = Annotated[Tensor, Operand.BASE]
#: [d, n]: what an edit changes, the residual axis first, whatever the layout on disk.
Weight = Annotated[Tensor, Operand.WEIGHT]
#: [d, k]: the orthonormal columns an edit works along; output norms on the way to the stream are folded in.
Subspace = Annotated[Tensor, Operand.SUBSPACE]
#: [in, in]: the Gram of what a matrix [out, in] multiplies; None for a tensor that has none. With it the method gets
#: every matrix with its input axis last, whatever the layout on disk.
Gram = Annotated[Tensor | None, gram.Gram]
#: The same, measured behind the layers that are merged already.
MergedGram = Annotated[Tensor | None, gram.MergedGram]
#: […]: the Fisher information of each entry of a tensor, of its shape; None for a tensor that has none.
Fisher = Annotated[Tensor | None, fisher.Fisher]
#: One value a model: `PerModel[float]` for numbers, `PerModel[Gram]` for what was measured on each.
PerModel = Annotated[Sequence[_T], Operand.PER_MODEL]


@dataclass(frozen=True)
class Each:
    """A default that holds for every model."""

    value: float


def each(value: float) -> Any:
    """The default of a `PerModel` setting: this number for every model."""
    return Each(value)


@dataclass(frozen=True)
class OnBase:
    """A default that is measured: on the base model with neutral text, unless the setting `weight` is 0."""

    weight: str

    @property
    def value(self) -> str:
        """What it is, in words."""
        return f"measured on the base model with neutral text, unless {self.weight} is 0"


def on_base(weight: str) -> Any:
    """The default of a setting that takes an artifact: measured on the base model, unless that setting is 0.

    Called on plain tensors the method gets None.
    """
    return OnBase(weight)


@dataclass(frozen=True)
class Range:
    """An interval in the usual notation, such as ``(0, 1]`` or ``[0, inf)``."""

    text: str

    def __contains__(self, number: float) -> bool:
        low, high = (float(end) for end in self.text[1:-1].split(","))
        above = number > low if self.text[0] == "(" else number >= low
        below = number < high if self.text[-1] == ")" else number <= high
        return above and below


_SPELLED = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}


@dataclass(frozen=True, eq=False)
class Parameter:
    """One setting of a method, as recipes spell it."""

    name: str
    argument: str
    type: type
    per_model: bool
    default: Any
    choices: tuple[str, ...] = ()
    range: Range | None = None

    @property
    def per_tensor(self) -> bool:
        """Whether it is an artifact of which a method gets the entry of the tensor at hand."""
        return issubclass(self.type, PerTensor)

    @property
    def required(self) -> bool:
        """Whether a recipe must give it."""
        return self.default is inspect.Parameter.empty

    def fault(self, value: Scalar | DataFit) -> str | None:
        """What is wrong with one value of this setting, or None."""
        if self.per_tensor and isinstance(value, DataFit):
            return None
        fits = {float: Fraction, int: Fraction, bool: bool, str: str}.get(self.type, str)
        if not isinstance(value, fits) or (self.type is int and isinstance(value, Fraction) and value.denominator != 1):
            spelled = float(value) if isinstance(value, Fraction) else value
            return f"{self.name} must be {_SPELLED.get(self.type, 'a file')}, not {spelled!r}"
        if self.choices and value not in self.choices:
            return f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}"
        if self.range and isinstance(value, Fraction) and float(value) not in self.range:
            return f"{self.name} must lie in {self.range.text}, not {float(value)}"
        return None


@dataclass(frozen=True)
class Signature:
    """What a method's function asks for, by argument name."""

    operands: tuple[tuple[str, Operand], ...]
    parameters: tuple[Parameter, ...]
    statistics: tuple[tuple[str, Statistic], ...]
    noise: str | None

    def asks(self, operand: Operand) -> bool:
        """Whether the function takes this operand."""
        return any(kind is operand for _, kind in self.operands)


#: Keys of a recipe's steps, models and directions, which no setting may be called.
RESERVED = frozenset(
    "merge base_model models semantics model schedules of edit reshape directions layers writers tied allow_partial "
    "fit positive negative at file with parts".split()
)


def read_signature(function: Callable[..., Any], ranges: dict[str, str]) -> Signature:
    """Read operands, settings, statistics and noise from a function's annotations and defaults. TypeError if odd."""
    hints = typing.get_type_hints(function, include_extras=True)
    operands: list[tuple[str, Operand]] = []
    parameters: list[Parameter] = []
    statistics: list[tuple[str, Statistic]] = []
    noise: str | None = None
    for argument, declared in inspect.signature(function).parameters.items():
        hint, default = hints.get(argument), declared.default
        kind = _operand(hint)
        if isinstance(default, Statistic):
            statistics.append((argument, default))
        elif hint is Noise:
            noise = argument
        elif kind is not None and kind is not Operand.PER_MODEL:
            operands.append((argument, kind))
        else:
            parameters.append(_parameter(argument, hint, default, ranges))
    if unknown := set(ranges) - {parameter.name for parameter in parameters}:
        raise TypeError(f"{function.__name__}: a range is given for {', '.join(sorted(unknown))}, which is no setting")
    return Signature(tuple(operands), tuple(parameters), tuple(statistics), noise)


def _operand(hint: Any) -> Operand | None:
    return next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Operand)), None)


def _artifact(hint: Any) -> type[Artifact] | None:
    """The artifact that an annotated tensor is an entry of."""
    marks = getattr(hint, "__metadata__", ())
    return next((mark for mark in marks if inspect.isclass(mark) and issubclass(mark, Artifact)), None)


def _parameter(argument: str, hint: Any, default: Any, ranges: dict[str, str]) -> Parameter:
    name = argument.rstrip("_")
    if name in RESERVED:
        raise TypeError(f"setting {name!r} collides with a key of the recipe itself; rename it")
    choices: tuple[str, ...] = ()
    per_model = _operand(hint) is Operand.PER_MODEL
    if per_model:
        inner = typing.get_args(typing.get_args(hint)[0])
        hint = inner[0] if inner and not isinstance(inner[0], TypeVar) else float
    kind = _artifact(hint) or hint
    if typing.get_origin(hint) is Literal:
        choices, kind = typing.get_args(hint), str
    if not (kind in (float, int, bool, str) or (inspect.isclass(kind) and issubclass(kind, Artifact))):
        raise TypeError(
            f"setting {name!r} has type {hint}; use float, int, bool, str, Literal, PerModel or an artifact"
        )
    found = Range(ranges[name]) if name in ranges else None
    return Parameter(name, argument, kind, per_model, default, choices, found)
