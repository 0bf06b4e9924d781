"""`@fitter`: a plain function of two sets' moments becomes a registered fitter of directions, point by point."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec

import torch
from torch import Tensor

from surgeon.space.parameters import Parameter, Range, Signature, read_signature
from surgeon.space.registered import Registered

P = ParamSpec("P")

#: The contrast's sets, in the order of a fitter's arguments.
SETS = ("positive", "negative", "neutral")

#: What every fitter can be told: these keys say how its sets are measured and what is taken out of its rows.
MEASURING = (
    Parameter("position", "position", str, False, "last"),
    Parameter("neutral", "neutral", str, False, ""),
    Parameter("winsorise", "winsorise", float, False, 1.0, range=Range("(0, 1]")),
    Parameter("guard", "guard", bool, False, True),
    Parameter("components", "components", int, False, 16, range=Range("[0, inf)")),
)

#: Means of the same float32 states differ by less than this share of their size.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, sum and (where asked for) sum of products of vectors, in float64; two of them add up."""

    count: float
    total: Tensor
    products: Tensor | None = None

    @classmethod
    def of(cls, vectors: Tensor, second: bool = False) -> Moments:
        """The moments of vectors in hand, [n, d]."""
        wide = vectors.detach().double().reshape(-1, vectors.shape[-1])
        return cls(len(wide), wide.sum(0), wide.T @ wide if second else None)

    def __add__(self, other: Moments) -> Moments:
        products = None if self.products is None or other.products is None else self.products + other.products
        return Moments(self.count + other.count, self.total + other.total, products)

    def weighing(self, count: float) -> Moments:
        """The same mean and second moment with the weight of so many vectors."""
        share = count / self.count
        return Moments(count, self.total * share, None if self.products is None else self.products * share)

    @property
    def mean(self) -> Tensor:
        """[d]."""
        return self.total / self.count

    @property
    def second(self) -> Tensor:
        """E[x xᵀ], [d, d]; only of a fitter that declares `second_moments`."""
        if self.products is None:
            raise TypeError("second moments were not measured: declare @fitter(second_moments=True)")
        return self.products / self.count

    @property
    def covariance(self) -> Tensor:
        """E[x xᵀ] − μμᵀ, [d, d]."""
        return self.second - torch.outer(self.mean, self.mean)

    def near(self, other: Moments) -> bool:
        """Whether both are the same but for rounding: two sets of equal vectors, in whatever numbers."""
        pairs = [(self.mean, other.mean)]
        if self.products is not None and other.products is not None:
            pairs.append((self.second, other.second))
        return all((left - right).norm() <= _ROUNDING * (left.norm() + right.norm()) for left, right in pairs)


@dataclass(frozen=True, eq=False)
class Fitter(Registered, Generic[P]):
    """A fitter: from the moments of two sets at one residual point to rows [k, d] or [d].

    `second_moments` says that it asks for E[x xᵀ] too, `needs_neutral` that it cannot do without a neutral set.
    """

    function: Callable[P, Tensor]
    signature: Signature
    sets: tuple[str, ...]
    second_moments: bool = False
    needs_neutral: bool = False
    breaks: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """Settings by recipe name: its own, then those of measuring, which every fitter has."""
        return {parameter.name: parameter for parameter in (*self.signature.parameters, *MEASURING)}

    def rows(
        self, positive: Moments, negative: Moments, neutral: Moments | None, settings: Mapping[str, Any]
    ) -> Tensor:
        """Its rows, [k, d] float64, of the settings by recipe name; those that are not its own are left aside."""
        sets: dict[str, Moments | None] = {"positive": positive, "negative": negative, "neutral": neutral}
        own = {p.argument: settings[p.name] for p in self.signature.parameters if p.name in settings}
        given: dict[str, Any] = {name: sets[name] for name in self.sets} | own
        found = typing.cast(Callable[..., Tensor], self.function)(**given)
        return found.double().reshape(-1, found.shape[-1])

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        """Run on sets in hand: tensors [n, d], or their moments."""
        bound = inspect.signature(self.function).bind(*args, **kwargs)
        for name in self.sets:
            if isinstance(value := bound.arguments.get(name), Tensor):
                bound.arguments[name] = Moments.of(value, self.second_moments)
        return self.function(*bound.args, **bound.kwargs)


def fitter(
    function: Callable[P, Tensor] | None = None,
    *,
    second_moments: bool = False,
    ranges: dict[str, str] | None = None,
    breaks: dict[str, str] | None = None,
) -> Any:
    """Register a function as a fitter (bare, or with arguments).

    The signature is the interface: `positive: Moments`, `negative: Moments` and, if it uses one, a neutral set,
    `neutral: Moments | None` (`Moments` alone where it cannot do without); float, int, bool, str and Literal are
    settings of the direction's entry in a recipe.
    """

    def register(decorated: Callable[P, Tensor]) -> Fitter[P]:
        hints = typing.get_type_hints(decorated, include_extras=True)
        declared = inspect.signature(decorated).parameters
        sets = tuple(name for name in SETS if name in declared)
        if sets[:2] != SETS[:2] or any(hints.get(name) not in (Moments, Moments | None) for name in sets):
            raise TypeError(f"{decorated.__name__}: ask for positive: Moments, negative: Moments and, if used, neutral")
        own = [parameter for name, parameter in declared.items() if name not in sets]
        if taken := {p.name for p in own} & {p.name for p in MEASURING}:
            raise TypeError(f"{decorated.__name__}: every fitter has the setting {', '.join(sorted(taken))}; rename it")
        signature = read_signature(_settings_alone(decorated.__name__, own, hints), ranges or {})
        needs_neutral = hints.get("neutral") is Moments
        return Fitter(decorated, signature, sets, second_moments, needs_neutral, breaks or {})

    return register if function is None else register(function)


def _settings_alone(name: str, parameters: list[inspect.Parameter], hints: Mapping[str, Any]) -> Callable[..., None]:
    """A function that asks for these parameters only, to read settings from."""

    def settings() -> None:
        """Stands for the fitter's function without its sets."""

    settings.__name__ = name
    settings.__annotations__ = {parameter.name: hints.get(parameter.name) for parameter in parameters}
    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    settings.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    return settings
