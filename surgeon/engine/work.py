"""One worker's work on one output tensor: read, compute, check, cast, hash, write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from blake3 import blake3
from torch import Tensor

from surgeon.engine.invariants import Left
from surgeon.engine.journal import Record
from surgeon.engine.measure import measure_tensor
from surgeon.engine.reading import DiskReader, Files
from surgeon.engine.requantised import read_again, requantisation_error
from surgeon.errors import RunError, SurgeonError
from surgeon.planning.evaluation import Evaluator, Known, ranges, tile_elements
from surgeon.planning.plan import Plan
from surgeon.planning.step import Target, below
from surgeon.store.header import Stored
from surgeon.tensors import BITS, torch_dtype

_COMPARE_AT_ONCE = 4 << 20


def _pieces(target: Target, block: int) -> Iterator[tuple[int, int]]:
    """Blocks of a tensor; of one that is measured as it is written, tiles of whole rows."""
    count = target.spec.count
    if target.promise is None:
        yield from ranges(count, block)
    else:
        size = tile_elements(target.spec.shape)
        yield from ((start, min(start + size, count)) for start in range(0, count, size))


class Stopped(Exception):
    """The build is being given up."""


class Sink(Protocol):
    """Takes output tensors in any order, from several threads: an output folder, or whatever else has room for them."""

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Bytes of a tensor, from byte `start` on."""
        ...

    def copy(self, tensor: str, source: Stored) -> None:
        """A whole tensor's bytes, as they lie elsewhere."""
        ...

    def sync(self, files: Iterable[str]) -> None:
        """Return when what was written to these files is safe."""
        ...


@dataclass(frozen=True)
class Worker:
    """What a worker shares with the others: the plan, open files, the sink, what spans the model, when to stop.

    `copied` are the tensors whose whole file has been copied already.
    """

    plan: Plan
    files: Files
    sink: Sink
    device: torch.device
    known: Known
    tick: Callable[[int], None]
    copied: frozenset[str] = frozenset()

    def run(self, target: Target, reader: DiskReader) -> Record:
        """Make one output tensor. Errors name it."""
        try:
            copied = target.action == "copy"
            found = (self._copy(target, reader), None, None) if copied else self._compute(target, reader)
        except (SurgeonError, Stopped):
            raise
        except (ValueError, ArithmeticError, RuntimeError) as error:
            raise RunError(f"{target.name} ({target.reason}): {error}") from error
        read = {stored.place: found for stored, found in reader.digests().items()}
        digest, left, error = found
        return Record(target.name, digest, read, left, error)

    def _copy(self, target: Target, reader: DiskReader) -> str:
        assert target.stored is not None
        reader.begin()
        for other in target.equals:
            self._same(target, other)
        if target.name not in self.copied:
            self.sink.copy(target.name, target.stored)
        self.tick(target.spec.count)
        return reader.digest_of(target.stored)

    def _same(self, target: Target, other: Stored) -> None:
        assert target.stored is not None
        for start in range(0, other.spec.nbytes, _COMPARE_AT_ONCE):
            size = min(_COMPARE_AT_ONCE, other.spec.nbytes - start)
            pair = [bytearray(size), bytearray(size)]
            for stored, buffer in zip((target.stored, other), pair, strict=True):
                self.files.fill(stored, start, memoryview(buffer))
            if pair[0] != pair[1]:
                raise RunError(
                    f"{target.name} is {other.spec.dtype}, which is not combined, and differs between "
                    f"{target.stored.file} and {other.file}",
                    hint="models can be merged only where such tensors agree",
                )

    def _compute(self, target: Target, reader: DiskReader) -> tuple[str, tuple[float, float] | None, float | None]:
        stored = tuple(step.stored for step in below(self.plan.steps, target.key) if step.stored is not None)
        reader.begin(tuple(dict.fromkeys(stored)) if target.resident else ())
        evaluator = Evaluator(self.plan.steps, reader, dict(self.known))
        block = self.plan.options.block_elements
        measure_tensor(evaluator, target.key, block, self.tick)
        hasher, size = blake3(), BITS[target.spec.dtype] // 8
        left = Left(target.promise, evaluator, target.spec.shape) if target.promise is not None else None
        for start, stop in _pieces(target, block):
            value = evaluator.value(target.key, start, stop)
            self._check(target, value, evaluator, start, stop)
            stored = value.to(torch_dtype(target.spec.dtype))
            if left is not None:
                left.add(read_again(target, evaluator, stored, start, stop), start)
            data = memoryview(stored.cpu().view(torch.uint8).numpy())
            hasher.update(data)
            self.sink.write(target.name, start * size, data)
            self.tick(stop - start)
        error = requantisation_error(target, evaluator) if target.requantised is not None else None
        return hasher.hexdigest(), left and left.norms(), error

    def _check(self, target: Target, value: Tensor, evaluator: Evaluator, start: int, stop: int) -> None:
        """Refuse NaN and infinity, and what the output dtype cannot hold. A finite sum says all are finite."""
        if self.plan.options.allow_nan:
            return
        if not torch.isfinite(value.sum()) and not torch.isfinite(value).all():
            raise self._blame(target, evaluator, start, stop)
        if target.spec.dtype == "F16" and (value.abs() > torch.finfo(torch.float16).max).any():
            raise RunError(
                f"{target.name} holds values beyond float16's range", hint="write bfloat16 or float32, or --allow-nan"
            )

    def _blame(self, target: Target, evaluator: Evaluator, start: int, stop: int) -> RunError:
        """The error that names the input with NaN or infinity, or says that the result itself overflows."""
        for step in below(self.plan.steps, target.key):
            if step.stored is None:
                continue
            name, _, part = step.key.tensor.partition("\0")
            value = evaluator.whole(step.key) if part else evaluator.value(step.key, start, stop)
            if not torch.isfinite(value).all():
                found = f"{name} in {step.stored.file} holds NaN or infinity"
                return RunError(found, hint="repair that file, or insist with --allow-nan")
        return RunError(f"{target.name} ({target.reason}) overflows: the result is NaN or infinite")
