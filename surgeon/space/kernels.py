"""What computes a step, by name. Every kernel runs on plain tensors, on any device and on `meta`.

A kernel gets its aligned inputs stacked, [input, …], in a buffer of its own that it may overwrite, and its other inputs
as whole tensors. Rows kernels get the stack as [input, rows, columns] (a row runs along the last axis), whole kernels
as [input, *shape].
"""

from __future__ import annotations

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from surgeon.artifacts.banded import Banded
from surgeon.space.method import MergeMethod
from surgeon.space.noise import Noise
from surgeon.space.parameters import Operand
from surgeon.space.registry import merge_method_named
from surgeon.space.statistics import Statistic

#: Elements of one tile of a rows kernel; fixed, since a matrix product's bytes depend on its shape.
TILE = 1 << 18


@dataclass(frozen=True)
class Block:
    """A run of one tensor: flat indices start to stop of `shape`."""

    tensor: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def columns(self) -> int:
        """The length of a row."""
        return max(self.shape[-1], 1) if len(self.shape) > 1 else 1

    @property
    def rows(self) -> slice:
        """The rows (runs along the last axis) covered, when the block is a band of whole rows."""
        columns = self.columns
        return slice(self.start // columns, -(-self.stop // columns))


@dataclass(frozen=True)
class Call:
    """What a kernel is told besides its aligned inputs: settings, the block, whole inputs, what statistics found."""

    settings: Mapping[str, Any]
    block: Block
    wholes: Sequence[Tensor] = ()
    known: Mapping[str, Any] = field(default_factory=dict)


class Kernel(ABC):
    """One way to compute a step."""

    blocks: str = "elements"
    #: Elements of one tile of a rows kernel, about; more where a tile costs much beside its elements.
    tile: int = TILE
    #: Bytes held beside the input that becomes the value; None where only a run tells.
    scratch: int | None = None

    @property
    def statistics(self) -> Mapping[str, Statistic]:
        """What must be known of the whole tensor first, by argument."""
        return {}

    def observed(self, stack: Tensor, call: Call, statistic: Statistic) -> Any:
        """What a statistic looks at, usually [k, n], of the inputs; a rows kernel is asked tile by tile."""
        return stack.reshape(len(stack), -1)

    def width(self, inputs: int, settings: Mapping[str, Any]) -> int:
        """How many rows the statistics look at, of so many aligned inputs."""
        return inputs

    @abstractmethod
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        """The values of a block."""


class Combine(Kernel):
    """mass·x₀ + Σ cᵢ(xᵢ − x₀) + Σ cⱼdⱼ over x₀ (if `anchored`), `points` further points, and differences.

    Written so that equal inputs give equal bytes: 0.4x + 0.6x ≠ x in a third of fp32 entries, x + 0.6(x − x) = x.
    """

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        coefficients, anchored = call.settings["coefficients"], call.settings["anchored"]
        terms = stack[1:] if anchored else stack
        for index, coefficient in enumerate(coefficients):
            if index < call.settings["points"]:
                terms[index] -= stack[0]
            if coefficient != 1:
                terms[index] *= coefficient
            if index:
                terms[0] += terms[index]
        if not anchored or not call.settings["mass"]:
            return terms[0]
        return stack[0].add_(terms[0])


class Zeros(Kernel):
    """The value of a difference that does not touch a tensor."""

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        return torch.zeros(call.block.stop - call.block.start, device=stack.device, dtype=stack.dtype)


class LowRank(Kernel):
    """scale · B A, or its transpose, from the factors A [r, in] and B [out, r]: LoRA, https://arxiv.org/abs/2106.09685."""

    blocks = "rows"

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        a, b = call.wholes
        left, right = (a.T, b.T) if call.settings["transposed"] else (b, a)
        return (left[call.block.rows] @ right) * call.settings["scale"]


class Dora(Kernel):
    """The change DoRA makes: m (W + s·BA)/‖W + s·BA‖ − W, norms over each output: https://arxiv.org/abs/2402.09353."""

    blocks = "whole"

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        a, b, magnitude = call.wholes
        transposed = call.settings["transposed"]
        weight = stack[0].T if transposed else stack[0]
        moved = weight + (b @ a) * call.settings["scale"]
        norm = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        change = magnitude.reshape(-1, 1) * (moved / norm) - weight
        return change.T if transposed else change


class Merging(Kernel):
    """A registered merge method."""

    def __init__(self, method: MergeMethod[...]) -> None:
        self.method = method
        self.blocks = method.blocks

    @property
    @override
    def statistics(self) -> Mapping[str, Statistic]:
        return dict(self.method.signature.statistics)

    @override
    def observed(self, stack: Tensor, call: Call, statistic: Statistic) -> Tensor:
        return self.method.observed(statistic, self._arguments(self._operands(stack, call.settings), call))

    @override
    def width(self, inputs: int, settings: Mapping[str, Any]) -> int:
        models = len(settings["differences"])
        return models if self.method.subtracts(based=inputs > models) else inputs

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        turned = bool(call.settings.get("turned"))
        stack, entries = self._entries(stack, call)
        operands = self._operands(stack.mT if turned else stack, call.settings)
        merged = self.run(operands | entries, call)
        merged = merged.mT if turned else merged
        based = len(stack) > len(call.settings["differences"])
        return merged + stack[0] if self.method.subtracts(based) else merged

    def run(self, operands: Mapping[str, Any], call: Call) -> Tensor:
        """The function on its tensors, with the settings, statistics and noise of a call."""
        return self.method.function(**self._arguments(operands, call))

    def _arguments(self, operands: Mapping[str, Tensor], call: Call) -> dict[str, Any]:
        """The function's arguments by name, as far as they are known."""
        signature = self.method.signature
        plain = (parameter.argument for parameter in signature.parameters if parameter.argument not in operands)
        arguments = {**operands, **call.known} | {argument: _in_block(argument, call) for argument in plain}
        if signature.noise:
            seed, labels = call.settings["seed"], call.settings["labels"]
            tensor = call.block.tensor.partition("\0")[0]
            arguments[signature.noise] = Noise(seed, tensor, labels, call.block.start)
        return arguments

    def _entries(self, stack: Tensor, call: Call) -> tuple[Tensor, dict[str, Any]]:
        """The models' part of the stack, and the entries of artifacts by argument, one a model where it is so."""
        count = call.settings["models"] if self.method.per_tensor else len(stack)
        held = [*stack[count:], *call.wholes]

        def entry(place: int | None) -> Tensor | None:
            return None if place is None else held[place]

        found: dict[str, Any] = {}
        for parameter in self.method.per_tensor:
            places = call.settings[parameter.argument]
            found[parameter.argument] = tuple(map(entry, places)) if parameter.per_model else entry(places)
        return stack[:count], found

    def _operands(self, stack: Tensor, settings: Mapping[str, Any]) -> dict[str, Tensor]:
        """The function's tensors; base first in the stack where there is one. Differences stand for base + them."""
        based = len(stack) > len(settings["differences"])
        models = stack[1:] if based else stack
        as_vectors = self.method.subtracts(based)
        for model, difference in zip(models, settings["differences"], strict=True):
            if based and as_vectors and not difference:
                model -= stack[0]
            if based and not as_vectors and difference:
                model += stack[0]
        given = {Operand.BASE: stack[0]} | dict.fromkeys(
            (Operand.MODELS, Operand.TASK_VECTORS, Operand.VECTORS), models
        )
        return {argument: given[kind] for argument, kind in self.method.signature.operands}


def _in_block(argument: str, call: Call) -> Any:
    """The value of a setting; of a banded artifact, what it holds for the block."""
    value, block = call.settings[argument], call.block
    if not isinstance(value, Banded):
        return value
    return value.at(block.tensor, block.shape, block.rows, call.settings["labels"])


_BUILT_IN: Mapping[str, Kernel] = {"combine": Combine(), "zeros": Zeros(), "low_rank": LowRank(), "dora": Dora()}
_KINDS: dict[str, Callable[[str], Kernel]] = {"merge": lambda name: Merging(merge_method_named(name))}
#: Modules that register a kind when it is first asked for.
_HOMES = {
    "codec": "surgeon.space.codecs",
    "core": "surgeon.space.core_kernels",
    "edit": "surgeon.space.edit_kernels",
    "fp8": "surgeon.space.fp8",
    "frame": "surgeon.space.edit_kernels",
    "round": "surgeon.space.rounding",
    "span": "surgeon.space.core_kernels",
    "rows": "surgeon.space.row_kernels",
}


def register_kernels(kind: str, find: Callable[[str], Kernel]) -> None:
    """Kernels called ``kind:name`` are found by `find(name)`: how a further kind of node brings its own."""
    _KINDS[kind] = find


@functools.cache
def kernel_named(name: str) -> Kernel:
    """The kernel a step names; ``merge:ties`` is the registered merge method."""
    kind, _, own = name.partition(":")
    if kind in _HOMES and kind not in _KINDS:
        importlib.import_module(_HOMES[kind])
    return _KINDS[kind](own) if own else _BUILT_IN[name]
