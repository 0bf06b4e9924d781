"""Work over tensors by a few threads, each with torch on one thread: the bytes of a matrix product depend on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from surgeon.engine.events import Listener, Progress
from surgeon.engine.threads import one_torch_thread

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

THREADS = 2


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
    pool = ThreadPoolExecutor(THREADS, "surgeon-verify", initializer=torch.set_num_threads, initargs=(1,))
    with one_torch_thread():
        try:
            return list(pool.map(_without_grad(work), items))
        finally:
            pool.shutdown(cancel_futures=True)


def _without_grad(work: Callable[[_Item], _Result]) -> Callable[[_Item], _Result]:
    def run(item: _Item) -> _Result:
        with torch.inference_mode():
            return work(item)

    return run
