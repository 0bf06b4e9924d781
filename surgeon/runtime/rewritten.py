"""Parameters that accelerate keeps in files, written anew in files of their own: the originals are never touched."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import save_file
from torch import Tensor

from surgeon.runtime.held import Shelf
from surgeon.store.files import disk_errors

_Entry = tuple[MutableMapping[str, Any], str, Any]


class Rewritten:
    """Files that accelerate is pointed to instead of its own, until `restore`; else they live as long as the model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._before: list[_Entry] = []
        self._folder: Path | None = None
        self._count = 0

    def open(self, shelves: Sequence[Shelf]) -> Tensor:
        """A tensor that is the parameter's new file, holding what it held; `shelves` are those of all its names."""
        first = shelves[0]
        path = self._room(first) / f"{self._count}.safetensors"
        self._count += 1
        value = first.read().contiguous()
        with disk_errors("writing an offloaded parameter anew", path):
            save_file({first.key: value}, path, metadata={"format": "pt"})
            mapped = _mapped(path, value)
        dtype = str(value.dtype).removeprefix("torch.")
        for shelf in shelves:
            self._before.append((shelf.entries, shelf.key, shelf.entries[shelf.key]))
            shelf.entries[shelf.key] = {
                "safetensors_file": str(path), "weight_name": first.key, "dtype": dtype, "shape": list(value.shape),
            }  # fmt: skip
        return mapped

    def restore(self) -> None:
        """Point accelerate to its own files again, and remove the others."""
        while self._before:
            entries, key, entry = self._before.pop()
            entries[key] = entry
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _room(self, shelf: Shelf) -> Path:
        """The folder of these files: where accelerate keeps its own, if it has one, for there is room."""
        if self._folder is None:
            beside = shelf.folder if shelf.folder is not None and os.access(shelf.folder, os.W_OK) else None
            with disk_errors("making room for offloaded parameters", beside or Path(tempfile.gettempdir())):
                self._folder = Path(tempfile.mkdtemp(prefix="surgeon-", dir=beside))
            weakref.finalize(self._model, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder


def _mapped(path: Path, value: Tensor) -> Tensor:
    """The tensor in a safetensors file that holds it alone, through a writable map of the file."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    raw = numpy.memmap(path, dtype=numpy.uint8, mode="r+", offset=start, shape=(value.nbytes,))
    return torch.from_numpy(raw).view(value.dtype).reshape(value.shape)
