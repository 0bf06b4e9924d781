"""`@edit`: a plain function on one tensor, residual axis first, becomes a registered edit of what writes the stream.

Transposes, experts, biases and output norms are settled before the function sees anything: it gets the weight as
[d, n] and orthonormal columns [d, k], and gives [d, n].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, ParamSpec

import torch
from torch import Tensor
from typing_extensions import override

from surgeon.space.parameters import Operand, Parameter, Signature, read_signature
from surgeon.space.registered import Registered
from surgeon.space.statistics import Place, Statistic

P = ParamSpec("P")


@dataclass(frozen=True)
class Coordinates(Statistic):
    """RᵀW, [k, n] for every matrix of a tensor: summed over bands of residual rows in their order, in float64."""

    @property
    @override
    def rounds(self) -> int:
        return 1

    @override
    def scratch(self, models: int, count: int, block: int, tensors: int = 1) -> int:
        return 0  # the kernel's dry run sees it

    @override
    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> Tensor:
        d, n = settings["frame residual"], settings["frame columns"]
        return torch.zeros(count // (d * n), settings["frame rank"], n, dtype=torch.float64)

    @override
    def observe(self, known: Tensor, values: Any, place: Place) -> Any:
        return values

    @override
    def collect(self, known: Tensor, partials: dict[Any, Any], place: Place, partial: Any) -> None:
        total = partials.setdefault("total", torch.zeros_like(known, device=partial[0][1].device))
        for matrix, value in partial:
            total[matrix] += value

    @override
    def conclude(self, known: Tensor, partials: Mapping[Any, Any]) -> Tensor:
        return partials["total"]

    @override
    def at(self, known: Tensor, place: Place) -> Tensor:
        return known

    @override
    def of(self, values: Tensor, settings: Mapping[str, Any]) -> Tensor:
        return values


def coordinates() -> Any:
    """The default of an argument that holds RᵀW, [k, n], for the columns at hand."""
    return Coordinates()


@dataclass(frozen=True, eq=False)
class EditMethod(Registered, Generic[P]):
    """An edit: its function, what it asks for, and what it promises.

    `blocks` is ``rows`` where a band of residual rows may be computed alone (`coordinates()` is what must be known of
    all rows), else ``whole``. `unchanged` holds the settings at which nothing changes, `removes` those at which
    nothing is left of the subspace: RᵀW' = 0. `breaks` maps a law it does not keep to the reason.
    """

    function: Callable[P, Tensor]
    blocks: Literal["rows", "whole"]
    signature: Signature
    linear: bool = False
    unchanged: Mapping[str, float] = field(default_factory=dict)
    removes: Mapping[str, float] = field(default_factory=dict)
    breaks: Mapping[str, str] = field(default_factory=dict)
    owner: str = ""

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """Settings by recipe name."""
        return {parameter.name: parameter for parameter in self.signature.parameters}

    @property
    def needs_directions(self) -> bool:
        """Whether it works along a subspace."""
        return self.signature.asks(Operand.SUBSPACE)

    def holds(self, promise: Mapping[str, float], settings: Mapping[str, Any]) -> bool:
        """Whether the settings are those of a promise (`unchanged` or `removes`)."""
        return bool(promise) and all(settings.get(name) == value for name, value in promise.items())

    def arguments(self, weight: Tensor, subspace: Tensor | None, inside: Tensor | None) -> dict[str, Any]:
        """The function's tensors by argument; `inside` is RᵀW, computed of `weight` where it is None."""
        given = {Operand.WEIGHT: weight, Operand.SUBSPACE: subspace}
        found: dict[str, Any] = {argument: given[kind] for argument, kind in self.signature.operands}
        for argument, _ in self.signature.statistics:
            assert subspace is not None
            found[argument] = subspace.T @ weight if inside is None else inside
        return found

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        """Run on tensors in hand: weight [d, n] (or [d]) and orthonormal columns [d, k] (or [d])."""
        declared = inspect.signature(self.function)
        bound = declared.bind(*args, **kwargs)
        bound.apply_defaults()
        values = bound.arguments
        names = {kind: argument for argument, kind in self.signature.operands}
        weight = values[names[Operand.WEIGHT]]
        matrix = weight.reshape(len(weight), -1)
        subspace = values.get(names.get(Operand.SUBSPACE, ""))
        if subspace is not None:
            subspace = subspace.reshape(len(weight), -1)
        values |= {k: v for k, v in self.arguments(matrix, subspace, None).items() if k in names.values()}
        for argument, statistic in self.signature.statistics:
            if values[argument] is statistic and subspace is not None:
                values[argument] = subspace.T @ matrix
        return self.function(*bound.args, **bound.kwargs).reshape(weight.shape)


def edit(
    function: Callable[P, Tensor] | None = None,
    *,
    blocks: Literal["rows", "whole"] = "whole",
    linear: bool = False,
    unchanged: dict[str, float] | None = None,
    removes: dict[str, float] | None = None,
    ranges: dict[str, str] | None = None,
    breaks: dict[str, str] | None = None,
) -> Any:
    """Register a function as an edit (bare, or with arguments).

    The signature is the interface: one `Weight`; a `Subspace` if it works along directions; float, int, bool, str and
    Literal are settings of the step; `coordinates()` is RᵀW. `linear` says that it is linear in the weight.
    """

    def register(decorated: Callable[P, Tensor]) -> EditMethod[P]:
        signature = read_signature(decorated, ranges or {})
        kinds = [kind for _, kind in signature.operands]
        if kinds.count(Operand.WEIGHT) != 1 or set(kinds) - {Operand.WEIGHT, Operand.SUBSPACE}:
            raise TypeError(f"{decorated.__name__}: ask for one Weight and, along directions, one Subspace")
        if unknown := {*(unchanged or {}), *(removes or {})} - {parameter.name for parameter in signature.parameters}:
            raise TypeError(f"{decorated.__name__}: {', '.join(sorted(unknown))} is promised about but no setting")
        return EditMethod(decorated, blocks, signature, linear, unchanged or {}, removes or {}, breaks or {})

    return register if function is None else register(function)
