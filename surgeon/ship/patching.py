"""Runs a patch in either direction: every tensor of the source is hashed, every tensor of the target compared."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor

from surgeon.engine.events import Listener, Progress
from surgeon.engine.reading import DiskReader
from surgeon.engine.threads import keep_freed_blocks, one_torch_thread
from surgeon.errors import CheckpointError, MismatchError, RefusedError, SurgeonError
from surgeon.ship.image import Image, header_of
from surgeon.ship.patch_file import Patch, Side
from surgeon.ship.patch_write import Reading
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.containment import contained
from surgeon.store.files import Files
from surgeon.store.fingerprint import fingerprint
from surgeon.store.formats import listed
from surgeon.store.header import Stored, read_header
from surgeon.store.layout import Layout, Placement, ShardFile
from surgeon.store.writer import FolderWriter
from surgeon.tensors import BITS

_DAMAGED = "the patch is damaged: fetch it again, or export it again"


class _Stopped(Exception):
    """Another thread has failed."""


@dataclass
class Patching:
    """A patch on its way from one checkpoint to the other; `towards` is the side that is written."""

    patch: Patch
    source: Checkpoint
    towards: Side
    listener: Listener | None
    files: Files = field(default_factory=Files)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _done: int = 0

    @property
    def given(self) -> Image:
        """What the source must be."""
        return self.patch.image("base" if self.towards == "result" else "result")

    @property
    def wanted(self) -> Image:
        """What is written."""
        return self.patch.image(self.towards)

    @cached_property
    def _dense(self) -> dict[str, Stored]:
        held = self.patch.dense(self.towards)
        return {} if held is None else dict(held.tensors)

    @cached_property
    def _by_bytes(self) -> dict[tuple[str, str], Stored]:
        """The source's tensors by hash and what they are."""
        known = self.given.tensors
        return {(known[name].blake3, str(stored.spec)): stored for name, stored in self.source.tensors.items()}

    def check(self) -> None:
        """Refuse, before anything is written, a source that is plainly another, and a way back that is not held."""
        if self.towards == "base" and not self.patch.manifest.reverts:
            hint = "take the base from where it came, or export the patch with what undoes it"
            raise RefusedError(f"{self.patch.root} holds nothing that undoes it (--no-undo)", hint=hint)
        found = {name: stored.spec for name, stored in self.source.tensors.items()}
        known = {name: facts.spec for name, facts in self.given.tensors.items()}
        if found != known:
            names = sorted({name for name in found.keys() | known.keys() if found.get(name) != known.get(name)})
            raise refusal(self, f"{len(names)} tensors are there in one only or have other shapes: {listed(names)}")
        mark = fingerprint(self.source)
        if mark == self.wanted.fingerprint != self.given.fingerprint:
            raise refusal(self, f"it is the {self.towards} already")
        if mark != self.given.fingerprint:
            raise refusal(self, "its tensors hold other bytes")
        self._side_files()

    def write(self, folder: Path, threads: int) -> None:
        """Write the target into an empty folder. MismatchError names a tensor of the source that is another."""
        keep_freed_blocks()
        layout = self._layout(folder)
        with closing(self.files), closing(FolderWriter(folder, layout)) as writer, one_torch_thread():
            copied = self._copy_whole_files(writer, layout)
            self._run([*self._tasks(writer, copied)], threads)
            writer.sync(file.name for file in layout.files)
            writer.finish((), self._side_files())

    def _layout(self, folder: Path) -> Layout:
        """The target's files with their own headers, which are read again as those of any file."""
        shards = []
        for name, facts in self.wanted.files.items():
            kept = self.patch.files(self.towards) / f"{contained(folder, name, 'patch.json').name}.header"
            header = kept.read_bytes() if kept.is_file() else header_of(contained(self.source.root, name, "patch.json"))
            if blake3(header).hexdigest() != facts.header:
                raise CheckpointError(f"the header of {name} is not the one in patch.json", hint=_DAMAGED)
            shards.append(ShardFile(name, header, facts.size, ()))
        with closing(FolderWriter(folder, Layout(tuple(shards), {}, None))) as writer:
            writer.create()
        places, files = {}, []
        for shard in shards:
            held = read_header(folder / shard.name).tensors
            places |= {name: Placement(shard.name, one.offset, one.spec) for name, one in held.items()}
            files.append(ShardFile(shard.name, shard.header, shard.size, tuple(held)))
        if {name: place.spec for name, place in places.items()} != {n: f.spec for n, f in self.wanted.tensors.items()}:
            raise CheckpointError("the headers in the patch hold other tensors than patch.json", hint=_DAMAGED)
        return Layout(tuple(files), places, None)

    def _copy_whole_files(self, writer: FolderWriter, layout: Layout) -> set[str]:
        """Copy at once each file whose every byte lies in one of the source: shared where the disk can."""
        copied: set[str] = set()
        for shard in layout.files:
            path = self.source.root / shard.name
            facts = self.given.files.get(shard.name)
            same = facts is not None and facts.header == self.wanted.files[shard.name].header
            held = [self._copy_of(name) for name in shard.tensors]
            if same and all(one is not None and one.file == path for one in held):
                places = [one.offset for one in held if one is not None]
                if places == [layout.tensors[name].offset for name in shard.tensors]:
                    writer.copy_file(shard, path)
                    copied |= set(shard.tensors)
        return copied

    def _tasks(self, writer: FolderWriter, copied: set[str]) -> Iterator[tuple[int, Callable[[], None]]]:
        """What is to be done, by bytes: every tensor of the target, and every other one of the source to be hashed."""
        seen: set[Stored] = set()
        for name, facts in self.wanted.tensors.items():
            stored = self._copy_of(name)
            if stored is not None:
                seen.add(stored)
                yield stored.spec.nbytes, lambda n=name, s=stored: self._copy(n, s, writer, n in copied)
            elif name in self.patch.manifest.factors:
                seen.add(self.source.tensors[name])
                yield 2 * facts.spec.nbytes, lambda n=name: self._compute(n, writer)
            else:
                raise CheckpointError(f"the patch holds nothing of {name}", hint=_DAMAGED)
        for name, stored in self.source.tensors.items():
            if stored not in seen:
                yield stored.spec.nbytes, lambda n=name, s=stored: self._hashed(n, s)

    def _copy_of(self, name: str) -> Stored | None:
        """Where a tensor of the target lies as it is: in the patch or in the source."""
        facts = self.wanted.tensors[name]
        if name in self.patch.manifest.factors:
            return None
        if name in self._dense:
            return self._dense[name]
        same = self.given.tensors.get(name)
        if same is not None and (same.blake3, same.spec) == (facts.blake3, facts.spec):
            return self.source.tensors[name]
        return self._by_bytes.get((facts.blake3, str(facts.spec)))

    def _run(self, tasks: list[tuple[int, Callable[[], None]]], threads: int) -> None:
        total = sum(size for size, _ in tasks)

        def work(size: int, task: Callable[[], None]) -> None:
            torch.set_num_threads(1)
            if self._stop.is_set():
                raise _Stopped
            task()
            with self._lock:
                self._done += size
                if self.listener is not None:
                    self.listener(Progress("patch", self._done, total, "bytes"))

        pool = ThreadPoolExecutor(threads, "surgeon")
        futures = [pool.submit(work, *task) for task in sorted(tasks, key=lambda task: -task[0])]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
        errors = [error for one in futures if not one.cancelled() and (error := one.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, _Stopped)):
            raise error

    def _copy(self, name: str, stored: Stored, writer: FolderWriter, copied: bool) -> None:
        if not copied:
            writer.copy(name, stored)
        if self._digest(stored) != self.wanted.tensors[name].blake3:
            raise self._other(stored)

    def _hashed(self, name: str, stored: Stored) -> None:
        if self._digest(stored) != self.given.tensors[name].blake3:
            raise self._other(stored)

    def _digest(self, stored: Stored) -> str:
        reader = DiskReader(self.files, torch.device("cpu"))
        reader.begin()
        return reader.digest_of(stored)

    def _compute(self, name: str, writer: FolderWriter) -> None:
        """One tensor by its factors: hashed as it is read, and as it is written."""
        stored, factored = self.source.tensors[name], self.patch.factored(name)
        seen, made, start = blake3(), blake3(), 0
        size, reading = BITS[self.wanted.tensors[name].dtype] // 8, Reading(self.files, stored)

        def read(first: int, last: int) -> Tensor:
            values = reading(first, last)
            seen.update(memoryview(values.view(torch.uint8).numpy()))
            if self._stop.is_set():
                raise _Stopped
            return values

        fault = ""
        try:
            for band in factored.forward(read) if self.towards == "result" else factored.backward(read):
                data = memoryview(band.view(torch.uint8).numpy())
                made.update(data)
                writer.write(name, start * size, data)
                start += len(band)
        except (ValueError, RuntimeError) as error:
            fault = f" ({error})"
        if seen.hexdigest() != self.given.tensors[name].blake3:
            raise self._other(stored)
        if fault or made.hexdigest() != self.wanted.tensors[name].blake3:
            raise CheckpointError(f"the factors of {name} do not give the tensor in patch.json{fault}", hint=_DAMAGED)

    def _other(self, stored: Stored) -> SurgeonError:
        """The error for a tensor whose bytes are not the ones expected."""
        if not stored.file.is_relative_to(self.source.root):
            return CheckpointError(f"{stored.file} holds other bytes than patch.json says", hint=_DAMAGED)
        name = next(name for name, one in self.source.tensors.items() if one == stored)
        return refusal(self, f"{name} holds other bytes")

    def _side_files(self) -> dict[str, bytes]:
        """The files beside the weights, from the patch or as they are; MismatchError where one is another."""
        texts = {}
        for name, digest in self.wanted.sides.items():
            kept = self.patch.files(self.towards) / name
            path = kept if kept.is_file() else self.source.root / name
            texts[name] = path.read_bytes() if path.is_file() else b""
            if blake3(texts[name]).hexdigest() != digest:
                raise MismatchError(f"{path} is not the file in patch.json", hint="bring back the file of that time")
        return texts


def refusal(run: Patching, why: str) -> MismatchError:
    """The error for a source that is not what the patch was made of."""
    what = "base" if run.towards == "result" else "result"
    made_of = f"; it was {run.given.ref}, hash {run.given.hash[:16]}…"
    return MismatchError(
        f"{run.source.ref} is not the {what} this patch was made of: {why}{made_of}",
        hint=f"take that {what}" + (", or a patch made of this one" if what == "base" else ""),
    )
