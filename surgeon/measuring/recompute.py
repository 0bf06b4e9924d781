"""Changed tensors computed again from their inputs, on a sample of blocks or whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from surgeon.engine.devices import choose
from surgeon.engine.measure import measure_model, measure_tensor
from surgeon.engine.reading import DiskReader, Files
from surgeon.measuring.magnitude import magnitude, roundings
from surgeon.measuring.pool import each
from surgeon.measuring.rounding import between, cast, ulp, unit
from surgeon.measuring.verdict import Finding, mismatch
from surgeon.planning.evaluation import Evaluator, Known, Reader, ranges
from surgeon.planning.plan import Plan
from surgeon.planning.step import Key, Step, Target
from surgeon.store.header import Stored
from surgeon.tensors import BITS, torch_dtype

#: A sample of a tensor: its first and last block and so many between, chosen by a hash of its name.
_BETWEEN = 2
_BLOCK = 1 << 16


class RoundedReader:
    """A reader that rounds what it reads, as tools do that cast all models to one dtype first."""

    def __init__(self, reader: Reader, dtype: str) -> None:
        self.device = reader.device
        self._reader, self._dtype = reader, torch_dtype(dtype)

    def read(self, stored: Stored, start: int, stop: int, out: Tensor) -> None:
        """Fill `out` with rounded elements."""
        self._reader.read(stored, start, stop, out)
        out.copy_(out.to(self._dtype))


@dataclass(frozen=True)
class Bench:
    """What recomputing needs of a plan: open files, the device, what spans the model."""

    plan: Plan
    files: Files
    device: torch.device
    known: Known
    tick: Callable[[int], None]

    @classmethod
    def of(cls, plan: Plan, files: Files, tick: Callable[[int], None]) -> Bench:
        """A bench with the statistics that span the model measured."""
        device = choose(plan.options.device)

        def evaluator_for(target: Target, known: Known) -> Evaluator:
            return Evaluator(plan.steps, _reader(files, device), known)

        def run(_: None) -> Known:
            return measure_model(plan.steps, plan.targets, evaluator_for, _BLOCK, lambda count: None)

        return cls(plan, files, device, each(run, [None])[0], tick)

    def evaluator(self, target: Target, steps: Any = None, rounded: str | None = None) -> Evaluator:
        """An evaluator of a target, its own statistics measured; `rounded`: the dtype inputs are first rounded to."""
        reader = _reader(self.files, self.device)
        reader = reader if rounded is None else RoundedReader(reader, rounded)
        evaluator = Evaluator(steps or self.plan.steps, reader, dict(self.known))
        measure_tensor(evaluator, target.key, _BLOCK, lambda count: None)
        return evaluator

    def stored(self, stored: Stored, start: int, stop: int) -> Tensor:
        """Elements start to stop of a stored tensor, in its own dtype."""
        size = BITS[stored.spec.dtype] // 8
        data = bytearray((stop - start) * size)
        if data:
            self.files.fill(stored, start * size, memoryview(data))
        self.tick(len(data))
        return torch.frombuffer(data, dtype=torch_dtype(stored.spec.dtype)) if data else torch.empty(0)


@dataclass(frozen=True)
class Recomputed:
    """How much was computed again, and what was wrong."""

    findings: tuple[Finding, ...]
    entries: int
    of: int

    @property
    def share(self) -> float:
        """The share of the changed entries that was computed again."""
        return self.entries / self.of if self.of else 1.0


def recompute(bench: Bench, targets: Sequence[tuple[Target, Stored]], *, full: bool, exactly: bool) -> Recomputed:
    """Compute targets again and compare with what is stored: bit for bit, or else within one rounding."""

    def one(pair: tuple[Target, Stored]) -> tuple[int, int, str]:
        target, stored = pair
        evaluator = bench.evaluator(target)
        compare = _wrong_bits if exactly else _wrong_values
        done = wrong = 0
        for start, stop in blocks(target, full):
            found = bench.stored(stored, start, stop)
            wrong += compare(evaluator, bench.plan.steps, target, found, start, stop)
            done += stop - start
        return done, wrong, target.name

    ordered = sorted(targets, key=lambda pair: -pair[0].spec.count)
    results = each(one, ordered)
    how = "bit for bit" if exactly else "within one rounding"
    findings = [mismatch(name, f"is not what the recipe gives {how}") for _, wrong, name in results if wrong]
    return Recomputed(tuple(findings), sum(done for done, *_ in results), sum(t.spec.count for t, _ in targets))


def blocks(target: Target, full: bool) -> Iterator[tuple[int, int]]:
    """The blocks to compute: all of them, or a sample that depends on the tensor's name and size alone."""
    every = list(ranges(target.spec.count, _BLOCK))
    if full or len(every) <= 2 + _BETWEEN:
        yield from every
        return
    seed = int.from_bytes(blake3(target.name.encode()).digest(length=8), "little")
    inner = len(every) - 2
    middle = {1 + (seed + index * math.ceil(inner / _BETWEEN)) % inner for index in range(_BETWEEN)}
    yield from (every[index] for index in sorted({0, len(every) - 1, *middle}))


def _wrong_bits(evaluator: Evaluator, steps: Any, target: Target, found: Tensor, start: int, stop: int) -> int:
    value = evaluator.value(target.key, start, stop).to(found.dtype).cpu()
    one, other = (tensor.contiguous().view(torch.uint8).reshape(stop - start, -1) for tensor in (value, found))
    return int((one != other).any(dim=1).sum())


def _wrong_values(evaluator: Evaluator, steps: Any, target: Target, found: Tensor, start: int, stop: int) -> int:
    value = evaluator.value(target.key, start, stop).double().cpu()
    low, high = reach(evaluator, steps, target.key, value, target.spec.dtype, start, stop)
    return int((~between(found.double(), low, high)).sum())


def reach(
    evaluator: Evaluator, steps: dict[Key, Step], key: Key, value: Tensor, dtype: str, start: int, stop: int
) -> tuple[Tensor, Tensor]:
    """The least and the largest number that a float32 computation in another order may give, rounded to a dtype."""
    slack = roundings(steps, key) * unit("F32") * magnitude(evaluator, key, start, stop).cpu()
    # A cast from float64 passes through float32, which may move a value by one rounding more.
    slack = slack + ulp(value, "F32")
    return cast(value - slack, dtype), cast(value + slack, dtype)


def _reader(files: Files, device: torch.device) -> DiskReader:
    reader = DiskReader(files, device)
    reader.begin()
    return reader
