"""The residual stream of a running model: what it holds at the points asked for, by hooks that are always removed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from surgeon.errors import RefusedError, nearest
from surgeon.runtime.load import Loaded

_POINT = re.compile(r"block\.(\d+)(\.mid)?")


@contextmanager
def capture(loaded: Loaded, points: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that every forward pass inside fills anew: residual point → states [batch, seq, d], detached.

    `points`: ``embed`` (what block 0 reads), ``block.i`` (after block i), ``block.i.mid`` (between its attention and
    its MLP). RefusedError for a point the model does not have.
    """
    states: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for point in points:
            hooks.callback(_hook(loaded, point, states).remove)
        yield states


def _hook(loaded: Loaded, point: str, states: dict[str, Tensor]) -> Any:
    if point not in loaded.anatomy.points():
        raise RefusedError(f"the model has no residual point {point!r}", hint=nearest(point, loaded.anatomy.points()))
    found = _POINT.fullmatch(point)
    if found is None:
        return loaded.blocks[0].register_forward_pre_hook(_reader(point, states), with_kwargs=True)
    block = loaded.blocks[int(found[1])]
    if found[2]:
        middle = block.get_submodule(loaded.anatomy.family.mid)
        return middle.register_forward_pre_hook(_reader(point, states), with_kwargs=True)
    return block.register_forward_hook(_writer(point, states))


def _reader(point: str, states: dict[str, Tensor]) -> Callable[..., None]:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[point] = (args[0] if args else kwargs["hidden_states"]).detach()

    return hook


def _writer(point: str, states: dict[str, Tensor]) -> Callable[..., None]:
    def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
        states[point] = (output[0] if isinstance(output, tuple) else output).detach()

    return hook
