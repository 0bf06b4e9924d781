"""Thinning out task vectors: by magnitude, by chance, by chance that grows with magnitude; and making up for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from surgeon.space.magnitude import Cut
from surgeon.space.noise import Noise
from surgeon.space.numeric import column
from surgeon.space.selection import Band
from surgeon.space.statistics import Table

# Both names are settings of DELLA: what its epsilon measures.
WIDTH, EITHER_SIDE = "width", "either_side"


def survivors(task_vectors: Tensor, noise: Noise, chances: Tensor) -> Tensor:
    """The task vectors, [model, …], with each entry kept by its chance, else zero."""
    return torch.sub(chances, noise.uniform(task_vectors)).relu_().sign_().mul_(task_vectors)


def drop(task_vectors: Tensor, noise: Noise, density: Sequence[float]) -> Tensor:
    """Keep every entry with the same chance, a model's density: DARE, https://arxiv.org/abs/2311.03099."""
    return survivors(task_vectors, noise, column(density, task_vectors))


def row_ranks(values: Tensor) -> Tensor:
    """The rank of each magnitude within its row (the last axis), from 0; of equal ones the first is the lower."""
    if values.device.type == "meta":
        return torch.empty_like(values)
    bits = values.abs().float().view(torch.int32).cpu().numpy()
    places = np.arange(bits.shape[-1])
    ranks = np.empty(bits.shape, dtype=np.float32)
    for magnitudes, found in zip(bits, ranks, strict=True):
        # One sort of magnitude and place together: no two are equal, so any sort is stable.
        order = (magnitudes.astype(np.int64) << 32) | places
        order.sort(axis=-1)
        order &= 0xFFFFFFFF
        np.put_along_axis(found, order, np.broadcast_to(places.astype(np.float32), order.shape), axis=-1)
    return torch.from_numpy(ranks).to(values.device, values.dtype)


def chances_by_rank(task_vectors: Tensor, density: Sequence[float], epsilon: Sequence[float], window: str) -> Tensor:
    """The chance of each entry to be kept, growing by rank within its row around the density, which is their mean.

    From the smallest to the largest magnitude the chances span `epsilon` (`window: width`), or twice that. A density
    of 1 keeps all. DELLA: https://arxiv.org/abs/2406.11617, section 3.1.
    """
    span = [(e if window == WIDTH else 2 * e) if d < 1 else 0.0 for d, e in zip(density, epsilon, strict=True)]
    last = task_vectors.shape[-1] - 1
    lowest = [d - s / 2 if last else d for d, s in zip(density, span, strict=True)]
    if not any(span):
        return column(density, task_vectors).expand_as(task_vectors)
    steps = column([s / max(last, 1) for s in span], task_vectors)
    return row_ranks(task_vectors).mul_(steps).add_(column(lowest, task_vectors))


def window_fault(density: Sequence[float], epsilon: Sequence[float], window: str) -> str | None:
    """What is wrong with a window of chances that leaves (0, 1), or None."""
    for d, e in zip(density, epsilon, strict=True):
        half = e / 2 if window == WIDTH else e
        if d < 1 and not (d - half > 0 and d + half < 1):
            return f"density {d:g} with epsilon {e:g} keeps entries with chances from {d - half:g} to {d + half:g}: \
they must lie between 0 and 1"
    return None


def restored(kept: Tensor, norms: Table) -> Tensor:
    """Task vectors, overwritten, scaled so that their L1 norms are those from before; norms are [before, after]."""
    before, after = norms
    return kept.mul_(column([b / a if a else 1.0 for b, a in zip(before, after, strict=True)], kept))


def _norms(before: Tensor, after: Tensor) -> Tensor:
    both = before.new_empty((2, *before.shape))
    torch.abs(before, out=both[0])
    torch.abs(after, out=both[1])
    return both


def trim_norms(task_vectors: Tensor, cut: Cut) -> Tensor:
    """Magnitudes before and after a selection of the largest, [2, model, …]."""
    return _norms(task_vectors, cut.trim(task_vectors))


def band_norms(task_vectors: Tensor, band: Band) -> Tensor:
    """Magnitudes before and after a selection of the middle ones, [2, model, …]."""
    return _norms(task_vectors, band.trim(task_vectors))


def drop_norms(task_vectors: Tensor, noise: Noise, density: Sequence[float]) -> Tensor:
    """Magnitudes before and after `drop`, [2, model, …]."""
    return _norms(task_vectors, drop(task_vectors, noise, density))


def rank_norms(
    task_vectors: Tensor, noise: Noise, density: Sequence[float], epsilon: Sequence[float], window: str
) -> Tensor:
    """Magnitudes before and after keeping entries by rank, [2, model, …]."""
    chances = chances_by_rank(task_vectors, density, epsilon, window)
    return _norms(task_vectors, survivors(task_vectors, noise, chances))
