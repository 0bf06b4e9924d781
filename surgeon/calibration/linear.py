"""The linear layers of a running model: the matrices on disk that each multiplies with, and which read the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.runtime.load import Loaded
from surgeon.runtime.names import Views, offset_in, parameter_views


@dataclass(frozen=True, eq=False)
class Linear:
    """Layers that read one input of `width` features: the first one's module, all their matrices on disk.

    `axis` is the input's in these matrices. `block` is the block it lies in; None outside.
    """

    module: nn.Module
    tensors: tuple[str, ...]
    axis: int
    width: int
    block: int | None

    @property
    def entry(self) -> str:
        """What its Gram is called in a file."""
        return self.tensors[0]


def linear_layers(loaded: Loaded, ids: list[int]) -> list[Linear]:
    """Every linear layer whose matrix is its own, those that read the same as one; told by a pass over some tokens.

    A head that shares the embedding's matrix is none: that matrix is no linear layer's alone. Experts that are held as
    one array are none either.
    """
    alone = list(_alone(loaded))
    inputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.setdefault(module, args[0])

    hooks = [layer.module.register_forward_pre_hook(keep) for layer in alone]
    try:
        with torch.no_grad():
            loaded.model(torch.tensor([ids], device=loaded.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    together: dict[tuple[int, int, int | None], Linear] = {}
    for layer in alone:
        if layer.module in inputs:
            key = id(inputs[layer.module]), layer.axis, layer.block
            first = together.setdefault(key, layer)
            if first is not layer:
                together[key] = replace(first, tensors=first.tensors + layer.tensors)
    return list(together.values())


def _alone(loaded: Loaded) -> Iterator[Linear]:
    from transformers.pytorch_utils import Conv1D

    views = parameter_views(loaded)
    shared = {module.weight.data_ptr() for module in loaded.model.modules() if isinstance(module, nn.Embedding)}
    blocks = {id(module): number for number, block in enumerate(loaded.blocks) for module in block.modules()}
    for module in loaded.model.modules():
        axis = -1 if isinstance(module, nn.Linear) else -2 if isinstance(module, Conv1D) else 0
        if axis and module.weight.data_ptr() not in shared:
            tensors = tuple(_names(views, module.weight, axis))
            if tensors:
                yield Linear(module, tensors, axis, module.weight.shape[axis], blocks.get(id(module)))


def _names(views: Views, weight: Tensor, axis: int) -> Iterator[str]:
    """The tensors on disk that lie in a matrix in memory as it lies there: itself, or parts that were joined."""
    for name, view in views.items():
        same = view.stride() == weight.stride() and view.shape[axis] == weight.shape[axis]
        if same and offset_in(view, weight) is not None:
            yield name
