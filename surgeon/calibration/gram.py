"""Measuring Grams: one forward pass over all examples, a few blocks at a time, each Gram written as it is finished.

Memory holds the blocks' Grams and the examples' residual streams, whatever the model's depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.artifacts.artifact import metadata_of
from surgeon.artifacts.gram import Gram
from surgeon.calibration.linear import Linear, linear_layers
from surgeon.calibration.streams import Streams
from surgeon.errors import RunError
from surgeon.runtime.load import Loaded
from surgeon.runtime.text import Encoded
from surgeon.store.tensor_file import TensorFile
from surgeon.tensors import TensorSpec

#: Told how many steps of how many are done.
Listener = Callable[[int, int], None]

#: Tokens that are multiplied at once, in float32; their sums are float64.
_AT_ONCE = 1024


class Moments:
    """Σ x xᵀ of the rows seen, float64 [d, d]; the rows are gathered so that each product is a large one."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = 0
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._rows: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Rows [n, d]."""
        self._rows.append(rows.float())
        if sum(map(len, self._rows)) >= _AT_ONCE:
            self._flush()

    def mean(self) -> Tensor:
        """Σ x xᵀ / n, float32 [d, d], symmetric to the last bit. RunError where it is not finite."""
        self._flush()
        mean = self._sum / max(self.count, 1)
        if not mean.isfinite().all():
            hint = "run it in float32, or look for NaN in its weights"
            raise RunError("what the model's layers read is not finite", hint=hint)
        return ((mean + mean.T) / 2).float()

    def _flush(self) -> None:
        if self._rows:
            rows = torch.cat(self._rows)
            self._sum += rows.T @ rows
            self.count += len(rows)
            self._rows = []


@contextmanager
def gathering(layers: Sequence[Linear], device: torch.device) -> Iterator[Mapping[str, Moments]]:
    """The moments of what the layers read in the forward passes made inside, by entry."""
    found = {layer.entry: Moments(layer.width, device) for layer in layers}

    def into(moments: Moments) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, args: moments.add(args[0].reshape(-1, args[0].shape[-1]))

    hooks = [layer.module.register_forward_pre_hook(into(found[layer.entry])) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def measure_grams(
    loaded: Loaded,
    encoded: Sequence[Encoded],
    path: Path,
    *,
    layers: int = 1,
    listener: Listener | None = None,
    **about: Any,
) -> Gram:
    """Measure the Gram of every linear layer over all tokens and write them to one file.

    `layers` is how many blocks are held at once: more takes memory and nothing else. `about` is what the caller knows
    of model and data.
    """
    linear = linear_layers(loaded, min((one.ids for one in encoded), key=len))
    with gram_file(path, linear, encoded, **about) as file:
        streams, count = Streams.start(loaded, encoded), len(loaded.blocks)
        for first in range(0, count, layers):
            end = min(first + layers, count)
            inside = [one for one in linear if one.block is not None and first <= one.block < end]
            with gathering(inside, loaded.device) as found:
                streams.through(first, end)
            write(file, found)
            if listener is not None:
                listener(end, count)
        outside = [one for one in linear if one.block is None]
        if outside:
            with gathering(outside, loaded.device) as found:
                streams.rest()
            write(file, found)
    return Gram.load(path)


def gram_file(
    path: Path, linear: Sequence[Linear], encoded: Sequence[Encoded], kind: str = Gram.kind, **about: Any
) -> TensorFile:
    """A file with room for the Grams of these layers, its metadata written."""
    specs = {layer.entry: TensorSpec("F32", (layer.width, layer.width)) for layer in linear}
    tokens = sum(len(one.ids) for one in encoded)
    places = {name: [layer.entry, layer.axis] for layer in linear for name in layer.tensors}
    known = {"tokens": tokens, "examples": len(encoded), "tensors": places}
    return TensorFile(path, specs, metadata_of(kind, {**about, **known}))


def write(file: TensorFile, found: Mapping[str, Moments]) -> None:
    """Write finished Grams."""
    for entry, moments in found.items():
        file.write(entry, memoryview(moments.mean().cpu().numpy()))
