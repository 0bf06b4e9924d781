"""Arithmetic whose bytes do not depend on block size, threads or CPU capability (tier A).

Sums over models and over tensors run in one fixed order, built of elementwise additions alone: torch's own reductions
change their order with the length and the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

#: Elements that one leaf of a reduction covers; blocks start at multiples of it.
CHUNK = 4096
#: Partial sums of a leaf that are added up in float64.
_WIDE = 64
#: Terms of the series of exp, enough below 1/4.
_TERMS = 7


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Set torch to one thread for a while; worker threads call `torch.set_num_threads(1)` themselves.

    Matrix products and sums change with torch's own threads; parallelism is over tensors instead.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def total(values: Tensor) -> Tensor:
    """Sum over models: [model, …] → […], in the order of the models."""
    if len(values) == 1:
        return values[0].clone()
    result = values[0] + values[1]
    for value in values[2:]:
        result += value
    return result


def sign_of(values: Tensor) -> Tensor:
    """-1 where negative, else 1. (`torch.where` with numbers takes forty times as long on a CPU.)"""
    return torch.sign(values).add_(0.5).sign_()


def exponential(values: Tensor, bound: float) -> Tensor:
    """exp of values in [0, bound], overwritten, to some 1e-5: torch's differs between CPUs and block lengths."""
    halvings = max(math.ceil(math.log2(4 * bound)), 0)
    values.mul_(2.0**-halvings)
    result = values / _TERMS + 1
    for term in range(_TERMS - 1, 0, -1):
        result.mul_(values).div_(term).add_(1)
    for _ in range(halvings):
        result.square_()
    return result


def column(numbers: Sequence[float], like: Tensor) -> Tensor:
    """Numbers, one a model, as a tensor that multiplies [model, …]."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).reshape(-1, *[1] * (like.ndim - 1))


def chunk_sums(values: Tensor) -> Tensor:
    """float64 sums over leaves of `CHUNK` elements: [n] → [⌈n/CHUNK⌉], each by halving."""
    short = -values.numel() % CHUNK
    padded = torch.nn.functional.pad(values.double(), (0, short)) if short else values.double()
    return _halve(padded.reshape(-1, CHUNK))


def row_sums(rows: Tensor) -> Tensor:
    """Sums over leaves of `CHUNK` elements of each row, [k, n] → [k, ⌈n/CHUNK⌉], float64 after six halvings.

    A third of the time of `chunk_sums`, exact to the rounding of six additions: for means, not for what cancels.
    """
    short = -rows.shape[1] % CHUNK
    parts = (torch.nn.functional.pad(rows, (0, short)) if short else rows).reshape(-1, CHUNK)
    half = parts[:, : CHUNK // 2] + parts[:, CHUNK // 2 :]
    while half.shape[1] > _WIDE:
        half = half[:, : half.shape[1] // 2].add_(half[:, half.shape[1] // 2 :])
    return _halve(half.double()).reshape(len(rows), -1)


def tree_sum(leaves: Tensor) -> float:
    """The sum of float64 leaves by halving, after padding to a power of two."""
    size = 1 << max(leaves.numel() - 1, 0).bit_length()
    padded = torch.nn.functional.pad(leaves, (0, size - leaves.numel()))
    return _halve(padded.reshape(1, -1)).item()


def _halve(rows: Tensor) -> Tensor:
    if rows.shape[-1] > 1:
        half = rows.shape[-1] // 2
        rows = rows[:, :half] + rows[:, half:]
    while rows.shape[-1] > 1:
        half = rows.shape[-1] // 2
        rows = rows[:, :half].add_(rows[:, half:])
    return rows[:, 0]
