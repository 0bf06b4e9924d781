"""Grams behind a merged prefix (RegMean++): what each model's layers read when the layers before are merged already.

Block after block: every model's own block reads what the merged blocks before it give for that model's prompts; its
Grams are written, the block is merged with them, and the examples move on through the merged block.
https://arxiv.org/abs/2508.03121
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.artifacts.gram import MergedGram
from surgeon.calibration.gram import Listener, Moments, gathering, gram_file, write
from surgeon.calibration.linear import Linear, linear_layers
from surgeon.calibration.streams import Streams
from surgeon.runtime.load import Loaded
from surgeon.runtime.names import Views, offset_in, parameter_views
from surgeon.runtime.text import Encoded

#: The merged value of a tensor, from each party's Gram of it (None: it has none).
Solve = Callable[[str, Sequence[Tensor | None]], Tensor]


@dataclass(frozen=True, eq=False)
class Party:
    """One model of a joint measurement: its samples, some of its tensors when asked for, and where its Grams go."""

    encoded: Sequence[Encoded]
    tensors: Callable[[Collection[str]], Mapping[str, Tensor]]
    path: Path
    about: Mapping[str, Any]


def measure_merged(loaded: Loaded, parties: Sequence[Party], solve: Solve, listener: Listener | None = None) -> None:
    """Measure all parties' Grams behind the prefix that `solve` merges, a file each.

    `loaded` is a model of their architecture; its parameters are overwritten. Memory holds one block of each party's
    tensors, one block's Grams of each, and the residual streams of all examples.
    """
    views, count = parameter_views(loaded), len(loaded.blocks)
    linear = linear_layers(loaded, min((one.ids for party in parties for one in party.encoded), key=len))
    entries = {name: layer.entry for layer in linear for name in layer.tensors}
    streams = [Streams.start(loaded, party.encoded) for party in parties]
    inside = [_names_in(loaded, views, number) for number in range(count)]
    outside = views.keys() - {name for names in inside for name in names}
    with ExitStack() as stack:
        files = [
            stack.enter_context(gram_file(party.path, linear, party.encoded, MergedGram.kind, **party.about))
            for party in parties
        ]
        _put(views, {name: solve(name, [None] * len(parties)) for name in outside - entries.keys()})
        for number, names in enumerate(inside):
            layers = [layer for layer in linear if layer.block == number]
            found = [
                _seen(views, party.tensors(names), layers, stream, number)
                for party, stream in zip(parties, streams, strict=True)
            ]
            for file, moments in zip(files, found, strict=True):
                write(file, moments)
            _put(views, {name: solve(name, _grams(found, entries.get(name))) for name in names})
            for stream in streams:
                stream.through(number, number + 1)
            if listener is not None:
                listener(number + 1, count)
        around = [layer for layer in linear if layer.block is None]
        for file, stream in zip(files, streams, strict=True) if around else ():
            with gathering(around, loaded.device) as moments:
                stream.rest()
            write(file, moments)


def _seen(
    views: Views, own: Mapping[str, Tensor], layers: Sequence[Linear], stream: Streams, number: int
) -> Mapping[str, Moments]:
    """What a party's own block reads."""
    _put(views, own)
    with gathering(layers, stream.loaded.device) as found:
        stream.through(number, number + 1, keep=False)
    return found


def _grams(found: Sequence[Mapping[str, Moments]], entry: str | None) -> list[Tensor | None]:
    return [None if entry is None else moments[entry].mean().cpu() for moments in found]


def _names_in(loaded: Loaded, views: Views, number: int) -> list[str]:
    """The tensors on disk that lie in a block."""
    held = list(loaded.blocks[number].parameters())
    return [name for name, view in views.items() if any(offset_in(view, one) is not None for one in held)]


@torch.no_grad()
def _put(views: Views, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        if name in views:
            views[name].copy_(value)
