"""Writes one safetensors file tensor by tensor, in any order: what it holds may be larger than memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from surgeon.store.files import disk_errors, sync_path, write_all
from surgeon.store.layout import Placement, one_file
from surgeon.tensors import TensorSpec


class TensorFile:
    """A file of known tensors and metadata that gets its bytes later; it bears its name only once it is whole.

    A context manager: leaving it without an error finishes the file, leaving it with one removes what was written.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> None:
        self._path, self._partial = path, path.with_name(f".{path.name}.partial")
        self._places: dict[str, Placement] = {}
        whole = one_file(path.name, specs, specs, self._places, metadata)
        with disk_errors("making room", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            os.truncate(self._fd, whole.size)
            write_all(self._fd, memoryview(whole.header), 0)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        if error is not None:
            self._partial.unlink(missing_ok=True)
            return
        with disk_errors("finishing", self._path):
            sync_path(self._partial)
            self._partial.replace(self._path)

    def write(self, name: str, data: memoryview) -> None:
        """The bytes of one tensor. ValueError where they are not as many as were announced."""
        data, place = data.cast("B"), self._places[name]
        if len(data) != place.spec.nbytes:
            raise ValueError(f"{name}: {len(data)} bytes of {place.spec.nbytes}")
        with disk_errors(f"writing {name}", self._path):
            write_all(self._fd, data, place.offset)
