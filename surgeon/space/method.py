"""`@merge_method`: a plain function becomes a registered merge method, and stays callable on plain tensors."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, ParamSpec

from torch import Tensor

from surgeon.space.noise import Noise
from surgeon.space.parameters import Each, OnBase, Operand, Parameter, Signature, read_signature
from surgeon.space.registered import Registered
from surgeon.space.schedule import Scalar
from surgeon.space.statistics import Statistic

P = ParamSpec("P")
Blocks = Literal["elements", "rows", "whole"]


@dataclass(frozen=True, eq=False)
class MergeMethod(Registered, Generic[P]):
    """A merge method: its function, what it asks for, and what it promises.

    `blocks` says which part of a tensor may be computed alone: any run of its ``elements``, any band of its ``rows``,
    or only the ``whole``. `unchanged` holds the settings at which a single model is left as it is, byte for byte.
    `breaks` maps a law it does not keep to the reason. `mergekit` maps each setting that mergekit does not have to the
    value that gives what mergekit computes and to what then differs from the method as it is here, in words (empty
    where the default is what mergekit does). A setting that mergekit has too, by another default, is there with that;
    what differs without a setting has the name "". `equivariant` says which changes of a matrix's basis go through it,
    ``both`` where f(QτRᵀ) = Q f(τ) Rᵀ for Q and R with orthonormal columns, ``left`` where f(Qτ) = Q f(τ): adapters
    are then merged in the space that their factors span. `check` says what is wrong with settings together, or None: a
    function of some of them by argument, and of `models`, their number.
    """

    function: Callable[P, Tensor]
    blocks: Blocks
    signature: Signature
    models: tuple[int, int | None] = (1, None)
    unchanged: Mapping[str, float] = field(default_factory=dict)
    breaks: Mapping[str, str] = field(default_factory=dict)
    mergekit: Mapping[str, tuple[Scalar, str]] = field(default_factory=dict)
    owner: str = ""
    equivariant: Literal["", "left", "both"] = ""
    check: Callable[..., str | None] | None = None

    @property
    def needs_base(self) -> bool:
        """Whether it works on task vectors or asks for the base."""
        return self.signature.asks(Operand.TASK_VECTORS) or self.signature.asks(Operand.BASE)

    @property
    def takes_base(self) -> bool:
        """Whether a base may be named."""
        return self.needs_base or self.signature.asks(Operand.VECTORS)

    def subtracts(self, based: bool = True) -> bool:
        """Whether the base, if there is one, is subtracted from the models and added to the result."""
        return self.signature.asks(Operand.TASK_VECTORS) or (based and self.signature.asks(Operand.VECTORS))

    def unchanged_at(self, settings: Mapping[str, Any]) -> bool:
        """Whether one model is left as it is, with settings by argument."""
        given = {p.name: settings[p.argument] for p in self.signature.parameters if not p.per_tensor}
        return bool(self.unchanged) and all(
            all(each == value for each in (given[name] if isinstance(given[name], tuple) else (given[name],)))
            for name, value in self.unchanged.items()
        )

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """Settings by recipe name; a method that asks for noise has a `seed`."""
        seed = (Parameter("seed", "seed", int, False, 0),) if self.signature.noise else ()
        return {parameter.name: parameter for parameter in (*self.signature.parameters, *seed)}

    @property
    def per_tensor(self) -> tuple[Parameter, ...]:
        """The settings that are artifacts with an entry for each tensor."""
        return tuple(parameter for parameter in self.signature.parameters if parameter.per_tensor)

    @property
    def operand(self) -> str:
        """The argument that holds the models or task vectors."""
        wanted = (Operand.TASK_VECTORS, Operand.MODELS, Operand.VECTORS)
        return next(argument for argument, kind in self.signature.operands if kind in wanted)

    def fault(self, settings: Mapping[str, Any], models: int) -> str | None:
        """What is wrong with settings together, by argument, or None."""
        if self.check is None:
            return None
        given = {**settings, "models": models}
        return self.check(**{argument: given[argument] for argument in _arguments(self.check)})

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        """Run on tensors in hand, [model, …]; statistics and noise not given are made of the whole tensors."""
        declared = inspect.signature(self.function)
        given = declared.bind_partial(*args, **kwargs)
        if self.signature.noise:
            given.arguments.setdefault(self.signature.noise, Noise())
        bound = declared.bind(*given.args, **given.kwargs)
        bound.apply_defaults()
        values = bound.arguments
        count = len(values[self.operand])
        for name, value in values.items():
            if isinstance(value, Each):
                values[name] = (value.value,) * count
            elif isinstance(value, OnBase):
                values[name] = None
        settings = {parameter.name: values[parameter.argument] for parameter in self.signature.parameters}
        for argument, statistic in self.signature.statistics:
            if values[argument] is statistic:
                looks = statistic.active(settings)
                seen = self.observed(statistic, values) if looks else values[self.operand]
                viewed = () if statistic.view is None else (count,)
                values[argument] = statistic.of(seen, settings, *viewed)
        return self.function(*bound.args, **bound.kwargs)

    def observed(self, statistic: Statistic, operands: Mapping[str, Any]) -> Tensor:
        """What a statistic looks at: its view, [row, n], else the base (if the function asks for it) and the models."""
        import torch

        if statistic.view is not None:
            view = statistic.view(**{argument: operands[argument] for argument in _arguments(statistic.view)})
            return view.reshape(-1, operands[self.operand][0].numel())
        base = next((argument for argument, kind in self.signature.operands if kind is Operand.BASE), None)
        if base is None or self.signature.asks(Operand.TASK_VECTORS):
            return operands[self.operand]
        return torch.cat([operands[base].unsqueeze(0), operands[self.operand]])


@functools.cache
def _arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def merge_method(
    function: Callable[P, Tensor] | None = None,
    *,
    blocks: Blocks = "whole",
    models: tuple[int, int | None] = (1, None),
    ranges: dict[str, str] | None = None,
    unchanged: dict[str, float] | None = None,
    breaks: dict[str, str] | None = None,
    mergekit: dict[str, tuple[Scalar, str]] | None = None,
    equivariant: Literal["", "left", "both"] = "",
    check: Callable[..., str | None] | None = None,
) -> Any:
    """Register a function as a merge method (bare, or with arguments).

    The signature is the interface: `TaskVectors`, `Models`, `Vectors`, `Base` are float32 tensors; `PerModel` a number
    a model; float, int, bool, str and Literal are settings of the step; a `Statistic` default is computed beforehand;
    `Noise` is randomness. `ranges` bounds numbers (``{"density": "(0, 1]"}``), `models` counts models without the base,
    `unchanged` holds settings at which a single model stays as it is, `mergekit` says how a translated recipe sets
    what mergekit does not have, `equivariant` which changes of basis of a matrix go through the method ("left" or
    "both"), so that adapters are merged without their products; `check` finds faults of settings together.
    """

    def register(decorated: Callable[P, Tensor]) -> MergeMethod[P]:
        signature = read_signature(decorated, ranges or {})
        wanted = [kind for _, kind in signature.operands if kind is not Operand.BASE]
        if len(wanted) != 1:
            raise TypeError(f"{decorated.__name__}: ask for one of TaskVectors, Models and Vectors")
        if equivariant and (blocks != "whole" or signature.statistics or wanted != [Operand.TASK_VECTORS]):
            raise TypeError(f"{decorated.__name__}: equivariant is for whole task vectors alone, without statistics")
        if fault := _entries_fault(signature, blocks):
            raise TypeError(f"{decorated.__name__}: {fault}")
        promises = unchanged or {}, breaks or {}, mergekit or {}
        return MergeMethod(decorated, blocks, signature, models, *promises, equivariant=equivariant, check=check)

    return register if function is None else register(function)


def _entries_fault(signature: Signature, blocks: Blocks) -> str | None:
    """What a method with entries of artifacts may not be: each would have to be cut, or turned, as the tensors are."""
    kinds = {parameter.type for parameter in signature.parameters if parameter.per_tensor}
    if len(kinds) > 1:
        return "its artifacts must be of one kind"
    if kinds and signature.statistics:
        return "a method with artifacts for each tensor has no statistics"
    if blocks != "whole" and any(not kind.aligned for kind in kinds):
        return f"what takes a {kinds.pop().kind} works on whole tensors: leave blocks out"
    return None
