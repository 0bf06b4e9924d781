"""A direction as a control vector: the GGUF file that llama.cpp (`--control-vector`) and repeng read.

`direction.i` is added to the stream after block i, at the points that are called ``block.i`` here. There is none for
block 0: llama.cpp takes none.
"""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import numpy as np
from torch import Tensor

from surgeon.artifacts.direction import OWN, Direction
from surgeon.errors import RefusedError

_BLOCK = re.compile(r"block\.(\d+)")


def layers_of(direction: Direction, at: str, layers: tuple[int, int] | None, label: str) -> dict[int, Tensor]:
    """The vector [d] to add after each block; with `layers` one point's vector is added after each block of the range.

    RefusedError for a subspace of several rows, and for points that llama.cpp has no place for.
    """
    at = at or direction.at
    if at != OWN:
        row = _row(direction, at, label)
        found = dict.fromkeys(range(*layers), row) if layers else {_number(at): row}
    else:
        numbers = sorted(int(match[1]) for point in direction.tensors if (match := _BLOCK.fullmatch(point)))
        chosen = [number for number in numbers if layers is None or layers[0] <= number < layers[1]]
        found = {number: _row(direction, f"block.{number}", label) for number in chosen}
    found.pop(0, None)
    if not found:
        raise RefusedError(f"{label} has nothing to add after block 1 or later", hint="name others: at, layers")
    return found


def write_control_vector(path: Path, vectors: dict[int, Tensor], model_type: str) -> None:
    """Write the file; `model_type` is its hint at the model, as transformers calls it."""
    from gguf import GGUFWriter

    writer = GGUFWriter(None, "controlvector")
    with closing(writer):
        writer.add_string("controlvector.model_hint", model_type)
        writer.add_int32("controlvector.layer_count", len(vectors))
        for number, vector in sorted(vectors.items()):
            writer.add_tensor(f"direction.{number}", np.ascontiguousarray(vector.float().numpy()))
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _number(point: str) -> int:
    match = _BLOCK.fullmatch(point)
    if match is None or match[1] == "0":
        hint = "add it after other blocks: layers, or take another point of the direction: at"
        raise RefusedError(f"llama.cpp adds nothing at {point}, only after block 1 and later", hint=hint)
    return int(match[1])


def _row(direction: Direction, point: str, label: str) -> Tensor:
    rows = direction.rows(point)
    if len(rows) != 1:
        hint = "a control vector is one vector a block"
        raise RefusedError(f"{label} at {point} is a subspace of {len(rows)} directions", hint=hint)
    return rows[0]
