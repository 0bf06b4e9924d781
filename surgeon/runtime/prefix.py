"""Blocks whose outputs are known are not run again: what comes before an edited block is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
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


class _Reached(Exception):
    """The last block that was asked for has given its output."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


@torch.no_grad()
def advanced(loaded: Loaded, ids: list[int], given: Any, first: int, end: int) -> Any:
    """What block `end` − 1 gives for the ids when block `first` − 1 gave `given`; only the blocks from first on run.

    With `first` 0 nothing is given. The modules in front of the blocks run each time; those behind them do not.
    """

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        raise _Reached(output)

    handle = loaded.blocks[end - 1].register_forward_hook(stop)
    try:
        with replayed(loaded, dict.fromkeys(range(first), given), first):
            loaded.trunk(torch.tensor([ids], device=loaded.device), use_cache=False)
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise RuntimeError(f"block {end - 1} was not run")


@torch.no_grad()
def closed(loaded: Loaded, ids: list[int], given: Any) -> Any:
    """What the model gives for the ids when its last block gave `given`; no block runs."""
    count = len(loaded.blocks)
    with replayed(loaded, dict.fromkeys(range(count), given), count):
        return loaded.model(torch.tensor([ids], device=loaded.device), use_cache=False)
