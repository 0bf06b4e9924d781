"""Stored tensors read to be compared, by a few threads, each with torch on one: a product's bytes depend on that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from blake3 import blake3
from torch import Tensor

from surgeon.engine.events import Listener, Progress
from surgeon.engine.reading import Files
from surgeon.engine.threads import one_torch_thread
from surgeon.errors import RunError
from surgeon.store.header import Stored
from surgeon.tensors import BITS, torch_dtype

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_THREADS = 2
_AT_ONCE = 4 << 20


class Ticker:
    """Counts bytes looked at and tells the listener; safe to use from several threads."""

    def __init__(self, stage: str, total: int, listener: Listener | None) -> None:
        self._stage, self._total, self._listener = stage, total, listener
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        """Note so many bytes more."""
        if self._listener is not None:
            with self._lock:
                self._done = min(self._done + count, self._total)
                self._listener(Progress(self._stage, self._done, self._total))


def each(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """The results of `work` on every item, in order; the first error is raised and what has not begun is dropped."""

    def run(item: _Item) -> _Result:
        with torch.inference_mode():
            return work(item)

    with one_torch_thread(), ThreadPoolExecutor(_THREADS, "surgeon-verify", torch.set_num_threads, (1,)) as pool:
        return list(pool.map(run, items))


def elements(files: Files, stored: Stored, start: int, stop: int) -> Tensor:
    """Elements start to stop of a stored tensor, flat, in its own dtype."""
    size = BITS[stored.spec.dtype] // 8
    data = bytearray((stop - start) * size)
    files.fill(stored, start * size, memoryview(data))
    dtype = torch_dtype(stored.spec.dtype)
    return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def chunks(files: Files, stored: Stored) -> Iterator[bytearray]:
    """A stored tensor's bytes, piece by piece."""
    for start in range(0, stored.spec.nbytes, _AT_ONCE):
        data = bytearray(min(_AT_ONCE, stored.spec.nbytes - start))
        files.fill(stored, start, memoryview(data))
        yield data


def same_bytes(files: Files, one: Stored, other: Stored) -> bool:
    """Whether two stored tensors are of one dtype and shape and hold the same bytes."""
    if one.spec != other.spec:
        return False
    return one == other or all(a == b for a, b in zip(chunks(files, one), chunks(files, other), strict=True))


def digests(files: Files, stored: Sequence[Stored], tick: Callable[[int], None]) -> dict[Stored, str]:
    """The blake3 of each stored tensor's bytes; '' where the file no longer holds it."""

    def digest(one: Stored) -> str:
        hasher = blake3()
        try:
            for chunk in chunks(files, one):
                hasher.update(chunk)
                tick(len(chunk))
        except RunError:
            return ""
        return hasher.hexdigest()

    largest_first = sorted(stored, key=lambda one: -one.spec.nbytes)
    return dict(zip(largest_first, each(digest, largest_first), strict=True))
