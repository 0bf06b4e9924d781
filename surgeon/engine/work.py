"""One worker's work on one output tensor: read, compute, check, cast, hash, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from blake3 import blake3
from torch import Tensor

from surgeon.engine.journal import Record
from surgeon.engine.measure import measure_tensor
from surgeon.engine.reading import DiskReader, Files
from surgeon.engine.sink import Sink
from surgeon.errors import RunError, SurgeonError
from surgeon.planning.evaluation import Evaluator, Known, ranges
from surgeon.planning.plan import Plan
from surgeon.planning.step import Step, Target, below
from surgeon.store.header import Stored
from surgeon.tensors import BITS, torch_dtype

_COMPARE_AT_ONCE = 4 << 20


class Stopped(Exception):
    """The build is being given up."""


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
            digest = self._copy(target, reader) if target.action == "copy" else self._compute(target, reader)
        except (SurgeonError, Stopped):
            raise
        except (ValueError, ArithmeticError, RuntimeError) as error:
            raise RunError(f"{target.name} ({target.reason}): {error}") from error
        read = {stored.place: found for stored, found in reader.digests().items()}
        return Record(target.name, digest, read)

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

    def _compute(self, target: Target, reader: DiskReader) -> str:
        stored = tuple(step.stored for step in below(self.plan.steps, target.key) if step.stored is not None)
        reader.begin(tuple(dict.fromkeys(stored)) if target.resident else ())
        evaluator = Evaluator(self.plan.steps, reader, dict(self.known))
        block = self.plan.options.block_elements
        measure_tensor(evaluator, target.key, block, self.tick)
        hasher, size = blake3(), BITS[target.spec.dtype] // 8
        for start, stop in ranges(target.spec.count, block):
            value = evaluator.value(target.key, start, stop)
            self._check(target, value, evaluator, start, stop)
            data = memoryview(value.to(torch_dtype(target.spec.dtype)).cpu().view(torch.uint8).numpy())
            hasher.update(data)
            self.sink.write(target.name, start * size, data)
            self.tick(stop - start)
        return hasher.hexdigest()

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
        for step in below(self.plan.steps, target.key):
            if step.stored is not None and not self._finite(step, evaluator, start, stop):
                return RunError(
                    f"{step.key.tensor.partition(chr(0))[0]} in {step.stored.file} holds NaN or infinity",
                    hint="repair that file, or insist with --allow-nan",
                )
        return RunError(f"{target.name} ({target.reason}) overflows: the result is NaN or infinite")

    def _finite(self, step: Step, evaluator: Evaluator, start: int, stop: int) -> bool:
        aligned = "\0" not in step.key.tensor
        value = evaluator.value(step.key, start, stop) if aligned else evaluator.whole(step.key)
        return bool(torch.isfinite(value).all())
