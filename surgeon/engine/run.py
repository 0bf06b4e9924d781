"""Runs a plan: workers over output tensors, the largest first; a flusher that makes finished ones durable."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from surgeon.engine.allocator import keep_freed_blocks
from surgeon.engine.devices import choose
from surgeon.engine.events import Listener, Progress
from surgeon.engine.journal import Journal, Record
from surgeon.engine.measure import measure_model
from surgeon.engine.reading import DiskReader, Files
from surgeon.engine.sink import Sink
from surgeon.engine.threads import one_torch_thread
from surgeon.engine.work import Stopped, Worker
from surgeon.planning.evaluation import Evaluator, Known, rounds
from surgeon.planning.plan import Plan
from surgeon.planning.step import Target

#: A finished tensor is made durable after so many seconds at the latest; what is not is redone after a crash.
_FLUSH_SECONDS = 0.5


class _Run:
    """The state shared by the threads of one run."""

    def __init__(self, plan: Plan, listener: Listener | None, todo: list[Target]) -> None:
        self.plan = plan
        self.listener = listener
        self.waiting = queue.SimpleQueue[Target]()
        for target in sorted(todo, key=lambda target: -target.spec.count):
            self.waiting.put(target)
        self.finished: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self.stop = threading.Event()
        self.errors: list[BaseException] = []
        self._lock = threading.Lock()
        self._done = 0
        self._total = sum(_looks(plan, target) * target.spec.count for target in todo)

    def tick(self, count: int) -> None:
        """Note elements done, tell the listener, and leave when the run is given up."""
        if self.stop.is_set():
            raise Stopped
        if self.listener is not None:
            with self._lock:
                self._done = min(self._done + count, self._total)
                self.listener(Progress("apply", self._done, self._total, "elements"))

    def fail(self, error: BaseException) -> None:
        """Keep the first error and stop the others."""
        with self._lock:
            self.errors.append(error)
        self.stop.set()


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
    done: dict[str, Record] = dict(journal.read()) if journal is not None else {}
    todo = [target for target in plan.targets if target.name not in done]
    state = _Run(plan, listener, todo)
    files = Files()
    keep_freed_blocks()
    with one_torch_thread():
        try:
            device = choose(plan.options.device)
            worker = Worker(plan, files, sink, device, _spanning(plan, todo, files, device, state), state.tick, copied)
            flusher = threading.Thread(target=_flush, args=(state, sink, journal, done), name="surgeon-flush")
            flusher.start()
            try:
                _work(state, worker)
            finally:
                state.finished.put(None)
                flusher.join()
        finally:
            files.close()
    if state.errors:
        raise state.errors[0]
    return done


def _work(state: _Run, worker: Worker) -> None:
    threads = [
        threading.Thread(target=_loop, args=(state, worker), name=f"surgeon-{i}") for i in range(state.plan.workers)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.1)
    except BaseException:
        state.stop.set()
        for thread in threads:
            thread.join()
        raise


def _loop(state: _Run, worker: Worker) -> None:
    torch.set_num_threads(1)
    reader = DiskReader(worker.files, worker.device)
    try:
        with torch.no_grad(), _stream(worker.device):
            while not state.stop.is_set():
                state.finished.put(worker.run(state.waiting.get_nowait(), reader))
    except (queue.Empty, Stopped):
        return
    except BaseException as error:
        state.fail(error)


def _flush(state: _Run, sink: Sink, journal: Journal | None, done: dict[str, Record]) -> None:
    places = state.plan.layout.tensors
    ended = False
    while not ended:
        batch: list[Record] = []
        deadline = time.monotonic() + _FLUSH_SECONDS
        while not ended and (left := deadline - time.monotonic()) > 0:
            try:
                record = state.finished.get(timeout=left)
            except queue.Empty:
                break
            ended = record is None
            batch += [record] if record is not None else []
        try:
            if journal is not None and batch:
                sink.sync({places[record.tensor].file for record in batch})
                journal.append(batch)
            done |= {record.tensor: record for record in batch}
        except BaseException as error:
            state.fail(error)
            return


def _spanning(plan: Plan, todo: list[Target], files: Files, device: torch.device, state: _Run) -> Known:
    def evaluator_for(target: Target, known: Known) -> Evaluator:
        reader = DiskReader(files, device)
        reader.begin()
        return Evaluator(plan.steps, reader, known)

    if not todo:
        return {}
    with torch.no_grad():
        return measure_model(plan.steps, plan.targets, evaluator_for, plan.options.block_elements, state.tick)


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
