"""A loaded model whose weights are base + Σ cᵢ ⊙ Δᵢ, with gradients of the coefficients alone.

Where every expert's change of a matrix is low rank, what it adds to the matrix's output is computed from the factors,
y = W x + Σ cᵢ ⊙ Bᵢ(Aᵢ x), and the weights stay as they are. Every other tensor is written anew for each step, and the
gradient of its coefficients is taken from that of the tensor: ∂/∂cᵢ = Σ G ⊙ Δᵢ over whatever the coefficient covers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import RunError
from surgeon.runtime.load import Loaded
from surgeon.runtime.names import Views, parameter_views
from surgeon.tuning.grain import Free


@dataclass(frozen=True, eq=False)
class Factors:
    """One expert's low-rank change of a matrix, as its layer applies it: y += B (A x), B [out, r], A [r, in]."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, eq=False)
class Changes:
    """What each expert changes, by tensor; None for an expert that leaves it alone.

    `factors` holds the tensors that are low rank in all, `dense` all others, as float32 of the tensor's shape.
    """

    factors: Mapping[str, Sequence[Factors | None]]
    dense: Mapping[str, Sequence[Tensor | None]]


class Mixture:
    """A loaded model at coefficients that are being learned, as a context manager; it is as it was afterwards.

    A step is: forward and backward passes, `collect`, a change of the leaves, `refresh`.
    """

    def __init__(self, loaded: Loaded, changes: Changes, free: Free) -> None:
        views = parameter_views(loaded)
        self._free, self._changes = free, changes
        self._modules = linears(loaded, views)
        self._dense = [_Dense(name, views[name], loaded, held) for name, held in changes.dense.items()]
        self._hooks: list[Any] = []

    def __enter__(self) -> Mixture:
        for name, changes in self._changes.factors.items():
            self._hooks.append(self._modules[name].register_forward_hook(partial(_add, self._free, name, changes)))
        self.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        for one in self._dense:
            one.restore()

    def refresh(self) -> None:
        """Write the dense tensors at the coefficients as they are now."""
        for one in self._dense:
            one.write(self._free.of(one.name))

    def collect(self) -> None:
        """Add to the leaves the gradients that came through dense tensors since the last time."""
        for one in self._dense:
            one.collect(self._free.of(one.name))
        for one in self._dense:
            one.parameter.grad = None


class _Dense:
    """One tensor of the disk that is written anew for each step, in the parameter that holds it."""

    def __init__(self, name: str, view: Tensor, loaded: Loaded, changes: Sequence[Tensor | None]) -> None:
        self.name, self._view, self._changes = name, view, changes
        self.parameter = _holding(loaded.model, view)
        self._base = view.clone()

    def write(self, coefficients: Tensor) -> None:
        """The base and what the experts add."""
        self.parameter.requires_grad_(True)
        with torch.no_grad():
            value = self._base.float()
            for own, change in zip(coefficients, self._changes, strict=True):
                if change is not None:
                    value = value + own * change
            self._view.copy_(value)

    def collect(self, coefficients: Tensor) -> None:
        """The coefficients' gradients of the parameter's."""
        if self.parameter.grad is None:
            return
        offset = self._view.storage_offset() - self.parameter.storage_offset()
        found = self.parameter.grad.contiguous().as_strided(self._view.shape, self._view.stride(), offset).float()
        gradients = [
            torch.zeros_like(own) if change is None else (found * change).sum_to_size(own.shape)
            for own, change in zip(coefficients, self._changes, strict=True)
        ]
        coefficients.backward(torch.stack(gradients))

    def restore(self) -> None:
        """As it was."""
        self.parameter.requires_grad_(False)
        self.parameter.grad = None
        with torch.no_grad():
            self._view.copy_(self._base)


def _holding(model: nn.Module, view: Tensor) -> nn.Parameter:
    """The parameter that a view lies in."""
    place = view.untyped_storage().data_ptr()
    for parameter in model.parameters():
        begin = parameter.storage_offset()
        inside = begin <= view.storage_offset() < begin + parameter.numel()
        if parameter.untyped_storage().data_ptr() == place and inside:
            return parameter
    raise RunError("a tensor of the loaded model is no parameter of it", hint="load it on one device")


def linears(loaded: Loaded, views: Views) -> dict[str, nn.Module]:
    """The layers whose weight is one tensor of the disk, as nn.Linear holds it or transposed; no tied embedding."""
    from transformers.pytorch_utils import Conv1D

    by_place = {view.data_ptr(): name for name, view in views.items() if view.is_contiguous()}
    found: dict[str, nn.Module] = {}
    for module in loaded.model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            name = by_place.get(module.weight.data_ptr())
            if name is not None and views[name].shape == module.weight.shape and name != loaded.anatomy.embed:
                found[name] = module
    return found


def _add(
    free: Free, name: str, changes: Sequence[Factors | None], module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor
) -> Tensor:
    """A layer's output with the experts' part; a coefficient covers all outputs, or one each.

    Σ cᵢ ⊙ Bᵢ(Aᵢ x) is (c₁ ⊙ B₁ | c₂ ⊙ B₂ | …)(A₁; A₂; …) x: two narrow products for all experts together.
    """
    held = [(own, change) for own, change in zip(free.of(name), changes, strict=True) if change is not None]
    x = inputs[0]
    down = torch.cat([change.a for _, change in held]).to(x.dtype)
    up = torch.cat([own.flatten()[:, None] * change.b for own, change in held], dim=1).to(x.dtype)
    return out + (x @ down.T) @ up.T
