"""Changed tensors computed again from their inputs, on a sample of blocks or whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from blake3 import blake3
from torch import Tensor

from surgeon.engine.devices import choose
from surgeon.engine.measure import measure_tensor
from surgeon.engine.reading import DiskReader, Files
from surgeon.engine.requantised import requantisation_error
from surgeon.engine.values import Values
from surgeon.measuring.magnitude import slack
from surgeon.measuring.reading import each, elements
from surgeon.measuring.rounding import near
from surgeon.measuring.verdict import Finding, mismatch
from surgeon.planning.evaluation import Evaluator, Known, ranges
from surgeon.planning.plan import Plan
from surgeon.planning.step import Key, Step, Target
from surgeon.store.header import Stored
from surgeon.tensors import torch_dtype

#: A sample of a tensor: its first and last block and so many between, chosen by a hash of its name.
_BETWEEN = 2
_BLOCK = 1 << 16


class _RoundedReader(DiskReader):
    """A reader that rounds what it reads, as tools do that cast all models to one dtype first."""

    def __init__(self, files: Files, device: torch.device, dtype: str) -> None:
        super().__init__(files, device)
        self._rounded = torch_dtype(dtype)

    def read(self, stored: Stored, start: int, stop: int, out: Tensor) -> None:
        """Fill `out` with rounded elements."""
        super().read(stored, start, stop, out)
        out.copy_(out.to(self._rounded))


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
        return cls(
            plan, files, choose(plan.options.device), each(lambda _: Values.of(plan, files).known, [None])[0], tick
        )

    def evaluator(self, key: Key, steps: Mapping[Key, Step] | None = None, rounded: str | None = None) -> Evaluator:
        """An evaluator of a value, its own statistics measured; `rounded`: the dtype inputs are first rounded to."""
        reader = _RoundedReader(self.files, self.device, rounded) if rounded else DiskReader(self.files, self.device)
        evaluator = Evaluator(self.plan.steps if steps is None else steps, reader, dict(self.known))
        measure_tensor(evaluator, key, _BLOCK, lambda count: None)
        return evaluator

    def stored(self, stored: Stored, start: int, stop: int) -> Tensor:
        """Elements start to stop of a stored tensor, in its own dtype."""
        found = elements(self.files, stored, start, stop)
        self.tick(found.nbytes)
        return found


def recompute(
    bench: Bench, targets: Sequence[tuple[Target, Stored]], *, full: bool, exactly: bool
) -> tuple[list[Finding], int, dict[str, float]]:
    """Compute targets again and compare with what is stored, bit for bit or else within one rounding.

    What was wrong, how many entries were computed, and ‖Ŵ − W‖/‖W‖ of each weight that was quantised again.
    """

    def one(pair: tuple[Target, Stored]) -> tuple[int, bool, float | None]:
        target, stored = pair
        evaluator, done, right = bench.evaluator(target.key), 0, True
        for start, stop in _blocks(target, full):
            value = evaluator.value(target.key, start, stop)
            found = bench.stored(stored, start, stop)
            right &= same(found, value.to(found.dtype).cpu()) if exactly else _near(evaluator, target, found, start)
            done += stop - start
        return done, right, requantisation_error(target, evaluator) if target.requantised is not None else None

    ordered = sorted(targets, key=lambda pair: -pair[0].spec.count)
    results = each(one, ordered)
    message = f"is not what the recipe gives {'bit for bit' if exactly else 'within one rounding'}"
    named = [(target.name, *found) for (target, _), found in zip(ordered, results, strict=True)]
    wrong = [mismatch(name, message) for name, _, right, _ in named if not right]
    errors = {name: error for name, _, _, error in named if error is not None}
    return wrong, sum(done for done, _, _ in results), errors


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes, so that NaN equals itself."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _near(evaluator: Evaluator, target: Target, found: Tensor, start: int) -> bool:
    """Whether each entry is one that a float32 computation in another order may give, rounded once."""
    stop, dtype = start + found.numel(), target.spec.dtype
    value = evaluator.value(target.key, start, stop).double().cpu()
    allowed = slack(evaluator, target.key, value, start, stop)
    return bool(near(found.double(), value, allowed, dtype).all())


def _blocks(target: Target, full: bool) -> Iterator[tuple[int, int]]:
    """The blocks to compute: all of them, or a sample that depends on the tensor's name and size alone."""
    every = list(ranges(target.spec.count, _BLOCK))
    if full or len(every) <= 2 + _BETWEEN:
        yield from every
        return
    seed = int.from_bytes(blake3(target.name.encode()).digest(length=8), "little")
    inner = len(every) - 2
    middle = {1 + (seed + index * math.ceil(inner / _BETWEEN)) % inner for index in range(_BETWEEN)}
    yield from (every[index] for index in sorted({0, len(every) - 1, *middle}))
