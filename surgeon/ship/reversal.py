"""A rounded change of a tensor, undone: what must be kept so that the numbers before it come back bit for bit.

W' = round(W − Δ) with Δ known. Numbers of a dtype are ordered as integers (their *keys*), and the rounded change is
monotone in them; so all W that give one W' are a run of keys, which both sides find by themselves, and only the place
in the run is kept. Most runs have one member: W' lies on the same grid. Only where the exponent grew do several numbers
fall together, and then a bit a doubling says which it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

#: Dtypes whose numbers are ordered as integers, and these integers.
KEYS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def keys(values: Tensor) -> Tensor:
    """Integers in the order of the numbers, −0 before 0."""
    return _turned(values.view(KEYS[values.dtype]))


def numbers(of: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that keys stand for."""
    return _turned(of).view(dtype)


def _turned(bits: Tensor) -> Tensor:
    """Bits of floats to keys, and back: what has a sign is counted down."""
    about = torch.iinfo(bits.dtype)
    return bits ^ ((bits >> (about.bits - 1)) & about.max)


def changed(values: Tensor, change: Tensor, dtype: torch.dtype) -> Tensor:
    """round(W − Δ), computed in float32."""
    return (values.float() - change).to(dtype)


@dataclass(frozen=True)
class Runs:
    """The entries whose run has several members: where they are, the first key of each run, how many it has."""

    place: Tensor
    first: Tensor
    count: Tensor

    def widths(self) -> Iterator[tuple[int, Tensor]]:
        """The bits that a place in a run takes, and which of the entries take so many."""
        last = self.count - 1
        for width in range(1, 34):
            which = ((last >> (width - 1)) == 1).nonzero()[:, 0]
            if len(which):
                yield width, which


def runs(result: Tensor, change: Tensor, dtype: torch.dtype) -> tuple[Tensor, Runs]:
    """What `result` (flat) was before the change, right where its run has one member; and the runs with several."""
    kind = KEYS[dtype]
    largest = int(keys(torch.tensor(torch.finfo(dtype).max, dtype=dtype)))
    least, wanted = -1 - largest, keys(result)
    guess = keys((result.float() + change).to(dtype)).clamp(least, largest)

    def image(at: Tensor, subtracted: Tensor) -> Tensor:
        return keys(changed(numbers(at, dtype), subtracted, result.dtype))

    sure = image(guess, change) == wanted
    sure &= (guess == least) | (image((guess - 1).clamp(min=least), change) != wanted)
    sure &= (guess == largest) | (image((guess + 1).clamp(max=largest), change) != wanted)
    place = (~sure).nonzero()[:, 0]
    aim, subtracted = wanted[place], change[place]

    def bound(strict: bool) -> Tensor:
        """The first key whose image is at least what is wanted; `strict`: more than it."""
        low, high = torch.full_like(place, least), torch.full_like(place, largest + 1)
        while bool((low < high).any()):
            middle = (low + high) // 2
            seen = image(middle.clamp(max=largest).to(kind), subtracted)
            enough = (seen > aim if strict else seen >= aim) | (middle > largest)
            low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
        return low

    first = bound(strict=False)
    count = bound(strict=True) - first
    guess[place] = first.clamp(max=largest).to(kind)
    several = count > 1
    return numbers(guess, dtype), Runs(place[several], first[several], count[several])


@dataclass
class Codes:
    """Places in runs, by their width in bits, in the order of the entries."""

    values: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def add(self, before: Tensor, found: Runs) -> None:
        """Keep where the numbers before the change (flat) are in their runs."""
        at = keys(before)[found.place].long() - found.first
        for width, which in found.widths():
            self.values.setdefault(width, []).append(at[which].numpy())

    def packed(self) -> tuple[dict[int, int], bytes]:
        """How many there are of each width; their bits, one width after another, each from a whole byte on."""
        counts, parts = {}, []
        for width, held in sorted(self.values.items()):
            joined = np.concatenate(held)
            counts[width] = len(joined)
            bits = (joined[:, None] >> np.arange(width)) & 1
            parts.append(np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little").tobytes())
        return counts, b"".join(parts)


class CodeReader:
    """Gives places in runs back, in the order in which they were added. ValueError where there are not as many."""

    def __init__(self, counts: Mapping[int, int], data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self._left, self._bit = dict(counts), dict[int, int]()
        start = 0
        for width, count in sorted(counts.items()):
            self._bit[width] = 8 * start
            start += -(-width * count // 8)
        if start != len(data):
            raise ValueError(f"{len(data)} bytes of codes, where {start} are announced")

    def restore(self, before: Tensor, found: Runs) -> None:
        """Put the numbers of the runs with several members into `before` (flat)."""
        held, at = keys(before), found.first.clone()
        for width, which in found.widths():
            at[which] += torch.from_numpy(self._take(width, len(which)))
        held[found.place] = at.to(held.dtype)
        before.copy_(numbers(held, before.dtype))

    def _take(self, width: int, count: int) -> np.ndarray:
        if self._left.get(width, 0) < count:
            raise ValueError(f"fewer codes of {width} bits than its entries ask for")
        start = self._bit[width]
        stop = start + width * count
        bits = np.unpackbits(self._data[start // 8 : -(-stop // 8)], bitorder="little")[start % 8 :][: width * count]
        self._bit[width], self._left[width] = stop, self._left[width] - count
        return bits.reshape(count, width).astype(np.int64) @ (1 << np.arange(width, dtype=np.int64))
