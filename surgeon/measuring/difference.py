"""How one tensor differs from another of its name: how much, where, in how many steps of its dtype, of what rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from surgeon.engine.reading import Files
from surgeon.measuring.rank import Rank, estimate
from surgeon.measuring.reading import chunks, elements, same_bytes
from surgeon.measuring.rounding import steps, ulp
from surgeon.planning.evaluation import ranges
from surgeon.store.header import Stored

_BLOCK = 1 << 18


@dataclass(frozen=True)
class Difference:
    """Of one tensor. `ulps` is None where the dtypes differ or are not floating; `nans` are those on one side only."""

    name: str
    entries: int
    changed: int
    dtype: str
    square: float = math.inf
    square_a: float = 1.0
    largest: float = math.inf
    ulps: int | None = None
    nans: int = 0
    rank: Rank | None = None

    @property
    def relative(self) -> float:
        """‖b − a‖ / ‖a‖."""
        if not self.square:
            return 0.0
        return math.sqrt(self.square / self.square_a) if self.square_a else math.inf


def difference(name: str, a: Stored, b: Stored, files: Files) -> Difference | None:
    """How b differs from a of the same shape; None where they hold the same bytes in the same dtype."""
    if same_bytes(files, a, b):
        return None
    if not (a.spec.is_float and b.spec.is_float):
        return _of_bytes(name, a, b, files)
    found, noise = changes(name, a, b, files)
    if not found.changed or found.nans or len(a.spec.shape) != 2 or not math.isfinite(found.square):
        return found
    height, width = a.spec.shape

    def rows() -> Iterator[tuple[int, Tensor]]:
        band = max(_BLOCK // width, 1)
        for first in range(0, height, band):
            span = first * width, min(first + band, height) * width
            one, other = (elements(files, stored, *span).double() for stored in (a, b))
            yield first, torch.nan_to_num(other - one).reshape(-1, width)

    return replace(found, rank=estimate(rows, (height, width), found.square, noise))


def changes(name: str, a: Stored, b: Stored, files: Files, rounded: bool = False) -> tuple[Difference, float]:
    """The difference without its rank, and the variance of b's rounding, an entry; `rounded`: of a's cast to b."""
    alike = rounded or a.spec.dtype == b.spec.dtype
    changed = nans = ulps = 0
    square = square_a = largest = noise = 0.0
    for start, stop in ranges(a.spec.count, _BLOCK):
        one, other = (elements(files, stored, start, stop) for stored in (a, b))
        one = one.to(other.dtype) if rounded else one
        changed += int(((one != other) & ~(one.isnan() & other.isnan())).sum())
        nans += int((one.isnan() != other.isnan()).sum())
        change = torch.nan_to_num(other.double() - one.double(), 0.0, math.inf, -math.inf)
        square += float(change.square().sum())
        square_a += float(torch.nan_to_num(one.double(), 0.0).square().sum())
        largest = max(largest, float(change.abs().max()))
        noise += float(ulp(torch.nan_to_num(other.double(), 0.0), b.spec.dtype).square().sum()) / 12
        if alike:
            ulps = max(ulps, int((steps(one, other, b.spec.dtype) * ~(one.isnan() | other.isnan())).max()))
    dtype = b.spec.dtype if alike else f"{a.spec.dtype} → {b.spec.dtype}"
    count = a.spec.count
    found = Difference(name, count, changed, dtype, square, square_a, largest, ulps if alike else None, nans)
    return found, noise / max(count, 1)


def _of_bytes(name: str, a: Stored, b: Stored, files: Files) -> Difference:
    """Of integers, and of packed numbers that are not decoded: how many bytes differ."""
    if a.spec.dtype != b.spec.dtype:
        return Difference(name, a.spec.count, a.spec.count, f"{a.spec.dtype} → {b.spec.dtype}")
    pairs = zip(chunks(files, a), chunks(files, b), strict=True)
    changed = sum(int((_bytes(one) != _bytes(other)).sum()) for one, other in pairs)
    return Difference(name, a.spec.nbytes, changed, f"{a.spec.dtype} (bytes)")


def _bytes(data: bytearray) -> Tensor:
    return torch.frombuffer(data, dtype=torch.uint8)
