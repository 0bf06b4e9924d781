"""Blocks whose outputs are known are not run again: what comes before an edited block is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from surgeon.runtime.load import Loaded


class _Known(nn.Module):
    """Stands for a block and gives what it gave; all else is asked of the block."""

    def __init__(self, block: nn.Module, output: Any) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)
        self._output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output as it was recorded."""
        return self._output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), name)


@contextmanager
def recorded(loaded: Loaded) -> Iterator[dict[int, Any]]:
    """The outputs of the blocks, by number, of the (last) forward pass made in the context."""
    outputs: dict[int, Any] = {}
    hooks = []
    for number, block in enumerate(loaded.blocks):

        def keep(module: nn.Module, args: Any, output: Any, number: int = number) -> None:
            outputs[number] = output

        hooks.append(block.register_forward_hook(keep))
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def replayed(loaded: Loaded, outputs: dict[int, Any], first: int) -> Iterator[None]:
    """Forward passes on the very inputs that were recorded run blocks from `first` on only."""
    held = [loaded.blocks[number] for number in range(first)]
    try:
        for number, block in enumerate(held):
            loaded.blocks[number] = _Known(block, outputs[number])
        yield
    finally:
        for number, block in enumerate(held):
            loaded.blocks[number] = block
