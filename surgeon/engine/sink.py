"""What the engine writes to: an output folder, or whatever else takes a tensor's bytes at an offset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from surgeon.store.header import Stored


class Sink(Protocol):
    """Takes output tensors in any order, from several threads."""

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Bytes of a tensor, from byte `start` on."""
        ...

    def copy(self, tensor: str, source: Stored) -> None:
        """A whole tensor's bytes, as they lie elsewhere."""
        ...

    def sync(self, files: Iterable[str]) -> None:
        """Return when what was written to these files is safe."""
        ...
