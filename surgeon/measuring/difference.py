"""How one tensor differs from another of its name: how much, where, in how many steps of its dtype, of what rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.engine.reading import Files
from surgeon.measuring.rank import Rank, estimate
from surgeon.measuring.rounding import steps, ulp
from surgeon.store.header import Stored
from surgeon.tensors import BITS, torch_dtype

_BLOCK = 1 << 18


@dataclass(frozen=True)
class Difference:
    """Of one tensor. `relative` is ‖b − a‖ / ‖a‖; `ulps` None where the dtypes differ or are not floating."""

    name: str
    entries: int
    changed: int
    square: float
    square_a: float
    largest: float
    ulps: int | None
    nans: int
    dtype: str
    rank: Rank | None = None

    @property
    def relative(self) -> float:
        """‖b − a‖ / ‖a‖."""
        if not self.square:
            return 0.0
        return math.sqrt(self.square / self.square_a) if self.square_a else math.inf


def difference(name: str, a: Stored, b: Stored, files: Files) -> Difference | None:
    """How b differs from a of the same shape; None where they hold the same bytes in the same dtype."""
    if a.spec.dtype == b.spec.dtype and _same_bytes(a, b, files):
        return None
    spelled = a.spec.dtype if a.spec.dtype == b.spec.dtype else f"{a.spec.dtype} → {b.spec.dtype}"
    if not (a.spec.is_float and b.spec.is_float):
        return _of_bytes(name, a, b, files, spelled)
    changed = nans = largest_step = 0
    square = square_a = largest = noise = 0.0
    for start in range(0, a.spec.count, _BLOCK):
        one, other = (_read(stored, files, start, min(start + _BLOCK, a.spec.count)) for stored in (a, b))
        change = other.double() - one.double()
        changed += int(((one != other) & ~(one.isnan() & other.isnan())).sum())
        nans += int((other.isnan() | one.isnan()).sum())
        change = torch.nan_to_num(change, 0.0, math.inf, -math.inf)
        square += float((change * change).sum())
        square_a += float(torch.nan_to_num(one.double(), 0.0).square().sum())
        largest = max(largest, float(change.abs().max()))
        coarse = ulp(torch.nan_to_num(other.double(), 0.0), b.spec.dtype)
        noise += float((coarse * coarse).sum()) / 12
        if a.spec.dtype == b.spec.dtype:
            numbers = ~(one.isnan() | other.isnan())
            largest_step = max(largest_step, int((steps(one, other, a.spec.dtype) * numbers).max()))
    ulps = largest_step if a.spec.dtype == b.spec.dtype else None
    rank = _rank(a, b, files, square, noise / a.spec.count) if changed and not nans else None
    return Difference(name, a.spec.count, changed, square, square_a, largest, ulps, nans, spelled, rank)


def _rank(a: Stored, b: Stored, files: Files, square: float, noise: float) -> Rank | None:
    """Of a matrix; what has other than two axes has no one rank."""
    if len(a.spec.shape) != 2 or not math.isfinite(square):
        return None
    height, width = a.spec.shape
    band = max(_BLOCK // max(width, 1), 1)

    def rows() -> Iterator[tuple[int, Tensor]]:
        for first in range(0, height, band):
            last = min(first + band, height)
            one, other = (_read(stored, files, first * width, last * width).double() for stored in (a, b))
            yield first, (other - one).reshape(last - first, width)

    return estimate(rows, (height, width), square, noise)


def _of_bytes(name: str, a: Stored, b: Stored, files: Files, dtype: str) -> Difference:
    """Of integers, and of packed numbers that are not decoded: how many bytes differ."""
    if a.spec.dtype != b.spec.dtype:
        return Difference(name, a.spec.count, a.spec.count, math.inf, 1.0, math.inf, None, 0, dtype)
    changed = 0
    for one, other in _byte_pairs(a, b, files):
        changed += int((torch.frombuffer(one, dtype=torch.uint8) != torch.frombuffer(other, dtype=torch.uint8)).sum())
    return Difference(name, a.spec.nbytes, changed, math.inf, 1.0, math.inf, None, 0, f"{dtype} (bytes)")


def _same_bytes(a: Stored, b: Stored, files: Files) -> bool:
    if (a.file, a.offset) == (b.file, b.offset):
        return True
    return all(one == other for one, other in _byte_pairs(a, b, files))


def _byte_pairs(a: Stored, b: Stored, files: Files) -> Iterator[tuple[bytearray, bytearray]]:
    at_once = 4 << 20
    for start in range(0, a.spec.nbytes, at_once):
        pair = bytearray(min(at_once, a.spec.nbytes - start)), bytearray(min(at_once, a.spec.nbytes - start))
        for stored, buffer in zip((a, b), pair, strict=True):
            files.fill(stored, start, memoryview(buffer))
        yield pair


def _read(stored: Stored, files: Files, start: int, stop: int) -> Tensor:
    size = BITS[stored.spec.dtype] // 8
    data = bytearray((stop - start) * size)
    if not data:
        return torch.empty(0, dtype=torch_dtype(stored.spec.dtype))
    files.fill(stored, start * size, memoryview(data))
    return torch.frombuffer(data, dtype=torch_dtype(stored.spec.dtype))
