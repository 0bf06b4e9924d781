"""Runs a plan: threads over output tensors, the largest first, while the caller's makes finished ones durable."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager

import torch

from surgeon.engine.devices import choose
from surgeon.engine.events import Listener, Progress
from surgeon.engine.journal import Journal, Record
from surgeon.engine.measure import measure_model
from surgeon.engine.reading import DiskReader, Files
from surgeon.engine.threads import keep_freed_blocks, one_torch_thread
from surgeon.engine.work import Sink, Stopped, Worker
from surgeon.planning.evaluation import Evaluator, Known, rounds
from surgeon.planning.plan import Plan
from surgeon.planning.step import Target

#: A finished tensor is made durable after so many seconds at the latest; what is not is redone after a crash.
_FLUSH_SECONDS = 0.5


class _Ticker:
    """Tells the listener of elements done; raises Stopped in every thread once `stop` is set."""

    def __init__(self, total: int, listener: Listener | None) -> None:
        self.stop = threading.Event()
        self._total, self._listener = total, listener
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        if self.stop.is_set():
            raise Stopped
        if self._listener is not None:
            with self._lock:
                self._done = min(self._done + count, self._total)
                self._listener(Progress("apply", self._done, self._total, "elements"))


def run(
    plan: Plan,
    sink: Sink,
    journal: Journal | None = None,
    listener: Listener | None = None,
    copied: frozenset[str] = frozenset(),
) -> dict[str, Record]:
    """Compute and write every target not yet in the journal; returns what is known of each, by tensor.

    `copied` tensors are in place already and are only hashed.

    KeyboardInterrupt leaves what is finished durable and in the journal.
    """
    done = {} if journal is None else journal.read()
    todo = [target for target in plan.targets if target.name not in done]
    tick = _Ticker(sum(_looks(plan, target) * target.spec.count for target in todo), listener)
    device = choose(plan.options.device)
    keep_freed_blocks()
    with one_torch_thread(), closing(Files()) as files:
        known = _spanning(plan, files, device, tick) if todo else {}
        _work(Worker(plan, files, sink, device, known, tick, copied), todo, tick.stop, journal, done)
    return done


def _work(
    worker: Worker, todo: list[Target], stop: threading.Event, journal: Journal | None, done: dict[str, Record]
) -> None:
    """Run the targets on the plan's threads; whatever ends it, all that is finished is in `done`."""
    waiting: queue.SimpleQueue[Target | None] = queue.SimpleQueue()
    finished: list[Record] = []
    workers = worker.plan.workers
    for target in (*sorted(todo, key=lambda target: -target.spec.count), *[None] * workers):
        waiting.put(target)
    pool = ThreadPoolExecutor(workers, "surgeon")
    loops = [pool.submit(_loop, worker, waiting, finished) for _ in range(workers)]
    try:
        while (state := wait(loops, _FLUSH_SECONDS, FIRST_EXCEPTION)).not_done:
            _flush(worker, journal, finished, done)
            if any(loop.exception() for loop in state.done):
                break
    finally:
        stop.set()
        pool.shutdown()
        _flush(worker, journal, finished, done)
    errors = [error for loop in loops if (error := loop.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
        raise error


def _loop(worker: Worker, waiting: queue.SimpleQueue[Target | None], finished: list[Record]) -> None:
    torch.set_num_threads(1)
    reader = DiskReader(worker.files, worker.device)
    with torch.no_grad(), _stream(worker.device):
        for target in iter(waiting.get, None):
            finished.append(worker.run(target, reader))


def _flush(worker: Worker, journal: Journal | None, finished: list[Record], done: dict[str, Record]) -> None:
    """Sync what is finished and not yet `done`, then journal it."""
    batch = [record for record in finished if record.tensor not in done]
    if journal is not None and batch:
        worker.sink.sync({worker.plan.layout.tensors[record.tensor].file for record in batch})
        journal.append(batch)
    done |= {record.tensor: record for record in batch}


def _spanning(plan: Plan, files: Files, device: torch.device, tick: _Ticker) -> Known:
    def evaluator_for(target: Target, known: Known) -> Evaluator:
        reader = DiskReader(files, device)
        reader.begin()
        return Evaluator(plan.steps, reader, known)

    with torch.no_grad():
        return measure_model(plan.steps, plan.targets, evaluator_for, plan.options.block_elements, tick)


def _looks(plan: Plan, target: Target) -> int:
    return 1 if target.action == "copy" else rounds(plan.steps, target.key)


@contextmanager
def _stream(device: torch.device) -> Iterator[None]:
    """One stream of its own for a worker on a CUDA device."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream(device)):
        yield
