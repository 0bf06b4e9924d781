"""A tensor changed by low-rank factors, in both directions, bit for bit."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from surgeon.ship.low_rank import Change, bands, matrices
from surgeon.ship.reversal import KEYS, CodeReader, Codes, changed, keys, numbers, runs
from surgeon.tensors import TensorSpec, torch_dtype

#: What reads elements start to stop of a tensor: flat, in its own dtype.
Read = Callable[[int, int], Tensor]
#: A change that leaves more entries than this share to corrections is none of its factors.
_CORRECTED = 0.5


@dataclass(frozen=True)
class Factored:
    """W' = round(W − scale · left right) + corrections; `codes` say which of the W that give one W' it was.

    left [a, rows, k], right [b, k, columns], a and b 1 or the tensor's matrices. A correction moves an entry
    (`places`, ascending) by so many steps on the grid of its dtype: what compensated rounding moved, or another order
    of summation left.
    """

    before: TensorSpec
    after: TensorSpec
    scale: float
    left: Tensor
    right: Tensor
    places: np.ndarray
    moves: np.ndarray
    counts: dict[int, int]
    codes: bytes

    def forward(self, read: Read) -> Iterator[Tensor]:
        """W' from W, flat, in bands."""
        for start, stop, change in _bands(self.before.shape, self.scale, self.left, self.right):
            yield self._moved(changed(read(start, stop), change, torch_dtype(self.after.dtype)), start, 1)

    def backward(self, read: Read) -> Iterator[Tensor]:
        """W from W', flat, in bands. ValueError where the codes do not fit what is read."""
        reader = CodeReader(self.counts, self.codes)
        for start, stop, change in _bands(self.before.shape, self.scale, self.left, self.right):
            before, several = runs(self._moved(read(start, stop), start, -1), change, torch_dtype(self.before.dtype))
            reader.restore(before, several)
            yield before

    def _moved(self, values: Tensor, start: int, sign: int) -> Tensor:
        """The corrections of a band added, or with sign −1 taken away."""
        first, last = np.searchsorted(self.places, (start, start + len(values)))
        if first == last:
            return values
        at = torch.from_numpy(self.places[first:last] - start)
        held = keys(values)
        steps = torch.from_numpy(self.moves[first:last]) * sign
        held[at] = (held[at].long() + steps).to(held.dtype)
        return numbers(held, values.dtype)


def fitted(
    before: TensorSpec, after: TensorSpec, parts: Sequence[Change], read_before: Read, read_after: Read
) -> Factored | None:
    """The change of one tensor to another by factors; None where these do not explain it."""
    types = torch_dtype(before.dtype), torch_dtype(after.dtype)
    if before.shape != after.shape or not set(types) <= KEYS.keys() or not parts:
        return None
    scale, left, right = _joined(parts)
    codes, places, moves, corrected = Codes(), [], [], 0
    for start, stop, change in _bands(before.shape, scale, left, right):
        old, new = read_before(start, stop), read_after(start, stop)
        near = changed(old, change, types[1])
        gap = keys(new).long() - keys(near).long()
        at = gap.nonzero()[:, 0]
        corrected += len(at)
        places.append((at + start).numpy())
        moves.append(gap[at].numpy())
        again, several = runs(near, change, types[0])
        codes.add(old, several)
        same = keys(again) == keys(old)
        same[several.place] = True
        if not same.all() or corrected > _CORRECTED * stop:
            return None
    counts, packed = codes.packed()
    return Factored(before, after, scale, left, right, np.concatenate(places), np.concatenate(moves), counts, packed)


def pack(places: np.ndarray, moves: np.ndarray) -> bytes:
    """Corrections in few bytes: gaps between places and moves as 32-bit numbers, byte by byte, deflated."""
    gaps = np.diff(places, prepend=0)
    if len(gaps) and max(int(gaps.max()), int(np.abs(moves).max())) >= 2**31:
        raise ValueError("a correction too far away")
    planes = np.concatenate([gaps, moves]).astype("<i4").view(np.uint8).reshape(-1, 4).T
    return zlib.compress(np.ascontiguousarray(planes).tobytes(), 6)


def unpack(data: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Corrections from their bytes. ValueError where they are not as many."""
    deflated = zlib.decompressobj()
    planes = deflated.decompress(data, 8 * count + 1)
    if len(planes) != 8 * count:
        raise ValueError(f"not the bytes of {count} corrections")
    values = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(4, -1).T).view("<i4").reshape(-1)
    return values[:count].astype(np.int64).cumsum(), values[count:].astype(np.int64)


def _joined(parts: Sequence[Change]) -> tuple[float, Tensor, Tensor]:
    """What is subtracted, as one pair of float32 factors: a single one keeps its scale."""
    if len(parts) == 1:
        scale, left, right = parts[0]
        right = -right if scale == 1 else right
        return (1.0 if scale == 1 else -scale), left.float().contiguous(), right.float().contiguous()
    count = max(len(one) for part in parts for one in (part.left, part.right))
    left = torch.cat([(part.scale * part.left).expand(count, -1, -1) for part in parts], dim=2)
    right = torch.cat([part.right.expand(count, -1, -1) for part in parts], dim=1)
    return -1.0, left.float().contiguous(), right.float().contiguous()


def _bands(shape: tuple[int, ...], scale: float, left: Tensor, right: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Every band: its first element and the one behind its last, and scale · left right there, flat."""
    _, rows, columns = matrices(shape)
    for matrix, band in bands(shape):
        start = (matrix * rows + band.start) * columns
        ends = left[matrix % len(left), band], right[matrix % len(right)]
        change = ends[0] * ends[1] if left.shape[-1] == 1 else ends[0] @ ends[1]
        yield start, start + change.numel(), (change if scale == 1 else change.mul_(scale)).reshape(-1)
