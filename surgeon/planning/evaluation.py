"""The value of a step on any range of its flat indices; the engine runs it on data, the dry run on `meta`.

Values do not depend on the ranges asked for: elementwise kernels see any block, rows kernels always see the same tiles,
and whole kernels the whole tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from surgeon.planning.step import Key, Step, below
from surgeon.space.kernels import TILE, Block, Call, Kernel, kernel_named
from surgeon.space.numeric import CHUNK
from surgeon.space.row_kernels import ABSENT
from surgeon.space.statistics import Statistic
from surgeon.store.header import Stored

Known = dict[tuple[Key, str], Any]


class Reader(Protocol):
    """Brings stored elements as floats to the device."""

    device: torch.device

    def read(self, stored: Stored, start: int, stop: int, out: Tensor) -> None:
        """Fill `out`, flat, with elements start to stop."""
        ...


class Evaluator:
    """Evaluates the steps below one output tensor. One thread, one tensor; it caches tiles and whole values."""

    def __init__(self, steps: Mapping[Key, Step], reader: Reader, known: Known) -> None:
        self.steps = steps
        self.reader = reader
        self.known = known
        self._whole: dict[Key, Tensor] = {}
        self._tile: dict[Key, tuple[int, Tensor]] = {}

    def value(self, key: Key, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Elements start to stop of a value: flat, float32 (float64 behind a float64 input)."""
        step = self.steps[key]
        if step.kernel == "load":
            assert step.stored is not None
            out = self._empty(step, stop - start) if out is None else out
            self.reader.read(step.stored, start, stop, out)
            return out
        kernel = kernel_named(step.kernel)
        if kernel.blocks == "elements":
            result = self._compute(step, kernel, start, stop)
        elif kernel.blocks == "rows":
            return self._tiles(step, kernel, start, stop, out)
        else:
            result = self.whole(key).reshape(-1)[start:stop]
        if out is None:
            return result
        return out.copy_(result)

    def whole(self, key: Key) -> Tensor:
        """A whole value in its own shape, kept while this evaluator lives."""
        if key not in self._whole:
            step = self.steps[key]
            whole = step.kernel != "load" and kernel_named(step.kernel).blocks == "whole"
            count = step.spec.count
            flat = self._compute(step, kernel_named(step.kernel), 0, count) if whole else self.value(key, 0, count)
            self._whole[key] = flat.reshape(step.spec.shape)
        return self._whole[key]

    def observe(self, step: Step, statistic: Statistic, start: int, stop: int) -> Any:
        """What a statistic of a step looks at, for one of its `pieces`; it may rest on those known already."""
        kernel = kernel_named(step.kernel)
        stack, block = self._shaped(step, kernel, start, stop)
        return kernel.observed(stack, self._call(step, kernel, block), statistic)

    def _compute(self, step: Step, kernel: Kernel, start: int, stop: int) -> Tensor:
        stack, block = self._shaped(step, kernel, start, stop)
        return kernel(stack, self._call(step, kernel, block)).reshape(-1)

    def _call(self, step: Step, kernel: Kernel, block: Block) -> Call:
        known = {
            name: statistic.at(self.known[step.key, name], (step.number, block.start))
            for name, statistic in kernel.statistics.items()
            if (step.key, name) in self.known
        }
        return Call(step.values, block, self._wholes(step), known)

    def _wholes(self, step: Step) -> list[Tensor]:
        return [self.whole(need.key) for need in step.inputs if need.whole]

    def _shaped(self, step: Step, kernel: Kernel, start: int, stop: int) -> tuple[Tensor, Block]:
        """The aligned inputs, as the kernel wants them, and where they lie."""
        stack = self._stack(step, start, stop)
        if kernel.blocks == "rows" and len(step.spec.shape) > 1:
            columns = max(step.spec.shape[-1], 1)
            stack = stack.reshape(len(stack), (stop - start) // columns, columns)
        elif kernel.blocks == "whole":
            stack = stack.reshape(len(stack), *step.spec.shape)
        return stack, Block(step.key.tensor, step.spec.shape, start, stop)

    def _stack(self, step: Step, start: int, stop: int) -> Tensor:
        aligned = [need for need in step.inputs if not need.whole]
        stack = self._empty(step, len(aligned), stop - start)
        for row, need in zip(stack, aligned, strict=True):
            if need.rows is None:
                self.value(need.key, start, stop, row)
            else:
                self._gather(need.key, need.rows.index, start, stop, row)
        return stack

    def _gather(self, key: Key, index: np.ndarray, start: int, stop: int, out: Tensor) -> None:
        """Fill `out`, [start, stop) of a tensor whose rows are `index` of another value; runs are read at once."""
        shape = self.steps[key].spec.shape
        columns = math.prod(shape[1:])
        first = start // columns
        rows = index[first : -(-stop // columns)]
        ends = np.flatnonzero(np.diff(rows) != (rows[:-1] >= 0)) + 1
        for begin, end in itertools.pairwise((0, *ends.tolist(), len(rows))):
            low, high = max((first + begin) * columns, start), min((first + end) * columns, stop)
            part, row = out[low - start : high - start], int(rows[begin])
            if row < 0:
                part.fill_(ABSENT)
            else:
                shift = (row - first - begin) * columns
                self.value(key, low + shift, high + shift, part)

    def _tiles(self, step: Step, kernel: Kernel, start: int, stop: int, out: Tensor | None) -> Tensor:
        size, count = tile_elements(step.spec.shape, kernel.tile), step.spec.count
        first = start // size * size
        if out is None and stop <= first + size:
            return self._tile_at(step, kernel, first, min(first + size, count))[start - first : stop - first]
        filled = self._empty(step, stop - start) if out is None else out
        for tile in range(first, stop, size):
            values = self._tile_at(step, kernel, tile, min(tile + size, count))
            begin, end = max(start, tile), min(stop, tile + size)
            filled[begin - start : end - start] = values[begin - tile : end - tile]
        return filled

    def _tile_at(self, step: Step, kernel: Kernel, start: int, stop: int) -> Tensor:
        held, values = self._tile.get(step.key, (-1, None))
        if held != start or values is None:
            values = self._compute(step, kernel, start, stop)
            self._tile[step.key] = start, values
        return values

    def _empty(self, step: Step, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64 if step.wide else torch.float32, device=self.reader.device)


def tile_elements(shape: tuple[int, ...], tile: int = TILE) -> int:
    """Elements of one tile of a rows kernel: whole rows (a vector is one), about `tile` elements."""
    columns = max(shape[-1], 1) if shape else 1
    return max(tile // columns, 1) * columns


def measured(steps: Mapping[Key, Step], key: Key) -> tuple[Step, ...]:
    """The steps below a value that have statistics, operands first."""
    return tuple(step for step in below(steps, key) if step.kernel != "load" and kernel_named(step.kernel).statistics)


def rounds(steps: Mapping[Key, Step], key: Key) -> int:
    """How often the inputs of a value are read, worst case: once per round of statistics and once to compute."""
    looks = (
        sum(one.reads for one in kernel_named(step.kernel).statistics.values() if one.active(step.values))
        for step in measured(steps, key)
    )
    return 1 + sum(looks)


def ranges(count: int, block: int) -> Iterator[tuple[int, int]]:
    """Blocks of a flat tensor, starting at multiples of `CHUNK`."""
    block = max(block // CHUNK, 1) * CHUNK
    for start in range(0, count, block):
        yield start, min(start + block, count)


def pieces(step: Step, block: int) -> Iterator[tuple[int, int]]:
    """What statistics look at, one after another: blocks, or a rows kernel's tiles, or the whole of a whole kernel."""
    kernel, count = kernel_named(step.kernel), step.spec.count
    size = tile_elements(step.spec.shape, kernel.tile) if kernel.blocks == "rows" else count
    if kernel.blocks == "elements":
        yield from ranges(count, block)
    else:
        yield from ((start, min(start + size, count)) for start in range(0, count, max(size, 1)))
