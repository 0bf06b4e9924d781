"""Compensated rounding: to 16 bits, such that what is stored, not only what was computed, is orthogonal to a frame.

Each vector of the residual stream starts from its nearest rounding. Then a few of its entries move to their other
neighbour among the 16-bit numbers, chosen so that the products with the frame cancel: first large steps, several at a
time, then the pair of small steps whose sum is nearest to what is left. What a vector becomes depends on it and the
frame alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from surgeon.space.kernels import TILE, Call, Kernel, register_kernels
from surgeon.tensors import torch_dtype

#: Entries of a vector that may move in large steps, for a frame of one column and of more.
_COARSE = 208, 256
#: Entries that may move in pairs of steps, pair after pair, and how far down each pair's stand in the order of the
#: frame's entries: from large steps to small ones.
_FINE, _DEPTH = 38, ((0.8, 0.94), (0.87,))
#: Rounds more for vectors that need them.
_MORE = 4
#: Elements of an intermediate that stay in cache.
_CACHED = 1 << 18


def compensate(values: Tensor, frame: Tensor, dtype: torch.dtype) -> Tensor:
    """Values [d, n] in a 16-bit dtype, each one of its two neighbours there, with frameᵀ·stored ≈ 0 for a frame [d, k].

    The frame holds orthonormal columns or zeros. Where values are NaN or infinite their column is rounded to nearest.
    """
    stored = values.clone()
    _round_columns(stored, frame, dtype)
    return stored.to(dtype)


def round_columns(values: Tensor, frame: Tensor, dtype: torch.dtype, kept: Tensor) -> None:
    """Round [d, n] in place to numbers of a dtype, each one of its two neighbours, with frameᵀ·stored ≈ kept [k, n].

    Any frame [d, k], float64: entries may be weighed. What is beyond the dtype's range must be cut off before.
    """
    _round_columns(values, frame, dtype, kept)


class Rounding(Kernel):
    """Rounds matrices [..., d, n] whose columns are vectors of the stream."""

    blocks = "whole"
    scratch = 32_000_000

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        frame = call.wholes[0].to(stack.device)
        for matrix in stack[0].reshape(-1, *stack[0].shape[-2:]):
            _round_columns(matrix, frame, self.dtype)
        return stack[0]


class RoundingLast(Rounding):
    """Rounds tensors whose rows are vectors of the stream."""

    blocks = "rows"
    tile = 4 * TILE

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        vectors = stack[0].reshape(-1, call.block.shape[-1])
        _round_rows(vectors, call.wholes[0].to(stack.device), self.dtype)
        return stack[0]


@dataclass(frozen=True)
class _Candidates:
    """Which entries of every vector may move: first `coarse` rows in large steps, then sets of `fine` in small ones.

    `many`, then `single`, say how many large steps are looked for at once, round by round.
    """

    rows: Tensor
    frame: Tensor
    coarse: int
    fine: int
    many: tuple[int, ...]
    single: tuple[int, ...]


def _candidates(frame: Tensor) -> _Candidates:
    """Large steps where a column of the frame is large; small ones near the end of its entries that are not zero."""
    d, rank = frame.shape
    order = frame[:, 0].abs().argsort(descending=True, stable=True)
    if rank > 1:
        places = frame.abs().argsort(dim=0, descending=True, stable=True).argsort(dim=0)
        order = places.amin(1).argsort(stable=True)
    used = (frame != 0).any(1).sum()
    depths = _DEPTH[rank > 1]
    fine = min(_FINE, d // (4 * len(depths))) // 2 * 2
    coarse = min(max(_COARSE[rank > 1], d // 8), d - len(depths) * fine)
    coarse -= coarse % 16 if coarse > 16 else 0
    starts: list[Tensor] = []
    for left, depth in zip(range(len(depths), 0, -1), depths, strict=True):
        start = (used * depth).long().clamp(max=d - left * fine)
        starts.append(torch.maximum(start, starts[-1] + fine) if starts else start)
    place = torch.arange(coarse, device=frame.device)
    for start in starts:
        place = place + fine * (place >= start)
    large = order[place]
    # Dealt out like cards, so that every part of them, when several steps are looked for at once, holds large ones.
    dealt = [large[hand::16] for hand in range(16)]
    paired = torch.arange(fine, device=frame.device)
    small = [order[start + paired[half::2]] for start in starts for half in (0, 1)]
    rows = torch.cat([*dealt, *small])
    # The rounding errors of d entries add up to some √d/12 steps, and that of an outlier to many more.
    # Where a vector holds little of the frame, most errors lead one way, and add up to some d/40 steps.
    share = max(d // 1024, 1)
    many = (16 * share,) * 2 + (16,) * (d // 2048) if rank == 1 else (8 * share,) * 3 + (8,) * (d // 1024)
    return _Candidates(rows, frame[rows], coarse, fine, many, (1,) * min(max(rank, 3), 8))


def _round_columns(values: Tensor, frame: Tensor, dtype: torch.dtype, kept: Tensor | None = None) -> None:
    """Round [d, n] in place, a band of columns at a time; frameᵀ·stored ≈ `kept` [k, n], 0 where that is None."""
    candidates = _candidates(frame)
    width = max(_CACHED // max(candidates.coarse, 1), 1)
    wanted = frame.new_zeros(frame.shape[1], values.shape[1]) if kept is None else kept
    for band, aim in zip(values.split(width, dim=1), wanted.split(width, dim=1), strict=True):
        exact = band.index_select(0, candidates.rows)
        residual = -aim
        height = max(_CACHED // 4 // band.shape[1], 1)
        for rows, part in zip(band.split(height), frame.split(height), strict=True):
            rounded = rows.to(dtype)
            rows.copy_(rounded)
            residual += part.T @ rounded.double()
        band[candidates.rows] = _balanced(exact, residual, candidates, dtype).to(values.dtype)


def _round_rows(values: Tensor, frame: Tensor, dtype: torch.dtype) -> None:
    """Round [n, d] in place."""
    candidates = _candidates(frame)
    width = max(_CACHED // max(candidates.coarse, 1), 1)
    for band in values.split(width):
        exact = band.index_select(1, candidates.rows).T.contiguous()
        rounded = band.to(dtype)
        band.copy_(rounded)
        residual = frame.T @ rounded.double().T
        band[:, candidates.rows] = _balanced(exact, residual, candidates, dtype).T.to(values.dtype)


def _balanced(exact: Tensor, residual: Tensor, candidates: _Candidates, dtype: torch.dtype) -> Tensor:
    """The stored values [m, n] of the candidates, from the residual [k, n] of the vectors rounded to nearest."""
    rounded = exact.to(dtype)
    stored, split = rounded.float(), candidates.coarse
    step = _other(exact, rounded, stored).float().sub_(stored)
    step.nan_to_num_(0.0, 0.0, 0.0)  # no step beyond the largest number, and none at infinity
    residual = torch.where(residual.isfinite(), residual, torch.nan)  # NaN is never shortened
    frame, first = candidates.frame, residual
    starts = range(split, len(stored), max(candidates.fine, 1))
    parts = [slice(0, split), *(slice(start, start + candidates.fine) for start in starts)]
    large, *sets = (_Steps(stored[part], step[part], frame[part]) for part in parts)
    # Small steps may all lead one way, where they undo a change far below their size. So one aims not at zero, but at
    # where the middle of what is still to come leads there.
    middles = [steps.middle if len(sets) > 1 else torch.zeros_like(first) for steps in sets]
    residual = sum(middles, residual)
    for count in candidates.many:
        residual = large.approach(residual, count)
    if residual.device.type != "meta":
        residual = large.go_on(residual, candidates.many[0])
    for count in candidates.single:
        residual = large.approach(residual, count)
    for steps, middle in zip(sets, middles, strict=True):
        residual = steps.finish(residual - middle)
    better = residual.square().sum(0) < first.square().sum(0)
    return torch.where(better, stored, rounded.float())


def _other(exact: Tensor, rounded: Tensor, stored: Tensor) -> Tensor:
    """The neighbour on the other side of the exact value; the rounded value itself where that is exact."""
    away = (exact.abs() - stored.abs()).sign_()
    bits = torch.int16 if rounded.element_size() == 2 else torch.int8
    return (rounded.view(bits) + away.to(bits)).view(rounded.dtype)


@dataclass(frozen=True)
class _Steps:
    """Rows [m, n] that may move by `step`, each at most once, with their rows [m, k] of the frame."""

    stored: Tensor
    step: Tensor
    frame: Tensor

    @cached_property
    def light(self) -> Tensor:
        """The rows of the frame in float32."""
        return self.frame.float()

    @cached_property
    def lengths(self) -> Tensor:
        """The squared lengths of what the steps change, [m, n]; of a step taken it stays, so that it is none again."""
        return self.step.square().mul_(self.light.square().sum(1, keepdim=True))

    @property
    def middle(self) -> Tensor:
        """What two median steps change along a single column, [1, n]: an outlier's does not count."""
        return (self.light * self.step).median(0, keepdim=True).values.mul_(2).double()

    def approach(self, residual: Tensor, count: int) -> Tensor:
        """Take up to `count` steps a column, the best of each part of the rows; the residual that is left."""
        along = self.light @ residual.float().mul_(-2)
        shorter = along.mul_(self.step).sub_(self.lengths)  # |ρ|² − |ρ + change|²
        parts = _packed(shorter, len(shorter), 0).unflatten(0, (math.gcd(count, len(shorter)), -1))
        picks = _unpacked(parts.amax(1), len(shorter))
        steps = self.step.gather(0, picks)
        changes = self.frame.T[:, picks] * steps
        # |ρ + change|² < |ρ|², and of several steps by so much that each is worth a moved entry.
        least = changes.square().sum(0) * (-0.5 if count == 1 else -1.0 if len(residual) == 1 else -2.0)
        taken = (residual[:, None] * changes).sum(0) < least
        changes = torch.where(taken, changes, 0)
        if count > 1:
            before = residual[:, None] + changes.cumsum(1) - changes
            late = taken & ((before * changes).sum(0) >= least)
            taken &= late.cumsum(0) == 0  # in their order, up to the first that is worth nothing after the others
        self._take(picks, torch.where(taken, steps, -0.0))
        return residual + torch.where(taken, changes, 0).sum(1)

    def go_on(self, residual: Tensor, count: int) -> Tensor:
        """More such rounds for the few vectors that are still more than six usual steps away, an outlier's mostly."""
        late = (residual.square().sum(0) > 36 * self.lengths[::8].median(0).values).nonzero()[:, 0]
        if not len(late):
            return residual
        few = _Steps(self.stored[:, late], self.step[:, late], self.frame)
        left = residual[:, late]
        for _ in range(_MORE):
            left = few.approach(left, count)
        self.stored[:, late], self.step[:, late] = few.stored, few.step
        return residual.index_copy(1, late, left)

    def finish(self, residual: Tensor) -> Tensor:
        """Take the pair of steps, one of either half, whose sum leaves least, and return what it leaves.

        One step of a pair may be none.
        """
        half = len(self.step) // 2
        changes = self.light.T[:, :, None] * self.step
        none = torch.zeros_like(changes[:, :1])
        first = torch.cat([none, changes[:, :half]], dim=1) + residual.float()[:, None]
        second = torch.cat([none, changes[:, half:]], dim=1)
        size, best = half + 1, []
        at_once = max(_CACHED // second.numel(), 1)
        for start in range(0, size, at_once):
            pairs = _lengths((first[:, start : start + at_once, None] + second[:, None]).flatten(1, 2))
            best.append(_packed(pairs, size * size, start * size).amin(0))
        pair = _unpacked(torch.stack(best).amin(0), size * size)
        chosen = torch.stack([pair // size, pair % size]) - 1
        picks = (chosen + chosen.new_tensor([[0], [half]])).clamp(min=0)
        steps = self.step.gather(0, picks) * (chosen >= 0)
        moved = residual + (self.frame.T[:, picks] * steps).sum(1)
        better = moved.square().sum(0) < residual.square().sum(0)
        self._take(picks, torch.where(better & (steps != 0), steps, -0.0))
        return torch.where(better, moved, residual)

    def _take(self, picks: Tensor, steps: Tensor) -> None:
        """Add steps; -0.0 is none, since it leaves a stored -0.0 as it is."""
        self.stored.scatter_add_(0, picks, steps)
        self.step.scatter_add_(0, picks, -steps)


def _lengths(vectors: Tensor) -> Tensor:
    """Lengths of vectors [k, m, n], squared where k > 1."""
    if len(vectors) == 1:
        return vectors[0].abs_()
    total = vectors[0].square_()
    for component in vectors[1:]:
        total += component.square_()
    return total


def _packed(values: Tensor, count: int, first: int) -> Tensor:
    """Floats [m, n] as integers of the same order whose lowest bits hold the row, of `count`, from `first` on.

    So one pass finds where the largest is, or of numbers without a sign the least.
    """
    bits = values.view(torch.int32)
    bits &= -1 << (count - 1).bit_length()
    bits |= torch.arange(first, first + len(bits), dtype=torch.int32, device=bits.device)[:, None]
    return bits


def _unpacked(least: Tensor, count: int) -> Tensor:
    """The rows that packed values hold."""
    return (least & ((1 << (count - 1).bit_length()) - 1)).long()


def _rounding(name: str) -> Kernel:
    dtype, _, layout = name.partition("@")
    return (RoundingLast if layout else Rounding)(torch_dtype(dtype))


register_kernels("round", _rounding)
