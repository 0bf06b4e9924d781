"""Stored bytes to floats on a device: reused buffers, held tensors, and a digest of every input read."""

from __future__ import annotations

import torch
from blake3 import blake3
from torch import Tensor

from surgeon.store.files import Files
from surgeon.store.header import Stored
from surgeon.tensors import BITS, torch_dtype

__all__ = ["DiskReader", "Files"]

_HASH_AT_ONCE = 4 << 20


class _Digest:
    """blake3 of a tensor's bytes, taken as they are first read, in order."""

    def __init__(self) -> None:
        self.hasher = blake3()
        self.upto = 0

    def see(self, start: int, data: memoryview) -> None:
        """Take in what is new of bytes that begin at `start`."""
        if start <= self.upto < start + len(data):
            self.hasher.update(data[self.upto - start :])
            self.upto = start + len(data)


class DiskReader:
    """One worker's reader. `begin` starts a new output tensor; `digests` then tells what was read for it."""

    def __init__(self, files: Files, device: torch.device) -> None:
        self.device = device
        self._files = files
        self._pinned = device.type == "cuda"
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._store = torch.empty(0, dtype=torch.uint8)
        self._held: dict[Stored, Tensor] = {}
        self._digests: dict[Stored, _Digest] = {}

    def begin(self, hold: tuple[Stored, ...] = ()) -> None:
        """Forget the last tensor; read the bytes of `hold` now and keep them."""
        self._held, self._digests = {}, {}
        # Each starts at a multiple of 8 bytes, so that a view of any dtype fits.
        sizes = [-(-stored.spec.nbytes // 8) * 8 for stored in hold]
        if self._store.numel() < sum(sizes):
            self._store = torch.empty(0, dtype=torch.uint8)
            self._store = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=self._pinned)
        for stored, room in zip(hold, self._store[: sum(sizes)].split(sizes), strict=True):
            raw = room[: stored.spec.nbytes]
            self._fetch(stored, 0, raw)
            self._held[stored] = raw

    def read(self, stored: Stored, start: int, stop: int, out: Tensor) -> None:
        """Fill `out` with elements start to stop, as floats."""
        size = BITS[stored.spec.dtype] // 8
        if stored in self._held:
            raw = self._held[stored][start * size : stop * size]
        else:
            raw = self._room((stop - start) * size)
            self._fetch(stored, start * size, raw)
        typed = raw.view(torch_dtype(stored.spec.dtype))
        out.copy_(typed if self.device.type == "cpu" else typed.to(self.device, non_blocking=self._pinned))
        if self._pinned:
            torch.cuda.current_stream(self.device).synchronize()

    def digests(self) -> dict[Stored, str]:
        """The digest of every tensor read since `begin`, whole."""
        for stored, digest in self._digests.items():
            while digest.upto < stored.spec.nbytes:
                raw = self._room(min(_HASH_AT_ONCE, stored.spec.nbytes - digest.upto))
                self._fetch(stored, digest.upto, raw)
        return {stored: digest.hasher.hexdigest() for stored, digest in self._digests.items()}

    def digest_of(self, stored: Stored) -> str:
        """The digest of a tensor that is only copied."""
        self._digests.setdefault(stored, _Digest())
        return self.digests()[stored]

    def _fetch(self, stored: Stored, start: int, raw: Tensor) -> None:
        view = memoryview(raw.numpy())
        self._files.fill(stored, start, view)
        self._digests.setdefault(stored, _Digest()).see(start, view)

    def _room(self, size: int) -> Tensor:
        if self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        return self._buffer[:size]
