"""How the task vectors of one tensor lie to each other: what says whether their sum keeps each of them.

Cosines say little: task vectors of real fine-tunes are nearly orthogonal and their merge may still break. What counts
is whether the others answer to the inputs a task vector answers to (`crossed`), and whether it lies in the subspace
that the sum mostly moves in (`aligned`, the subspace alignment ratio of https://arxiv.org/abs/2502.04959).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Random columns that estimate the norm of a product of matrices without forming it.
_PROBES = 32
#: The energy of the sum that its dominant subspace holds, and how many directions are looked at in a large matrix.
_ENERGY, _DIRECTIONS = 0.95, 256


@dataclass(frozen=True)
class Interference:
    """Squares and products, so that those of several tensors add up.

    `products` [T, T] are inner products; `size` is Σ|τ| and `cancelled` what of it a sum loses to opposite signs;
    `inside` [T] is ‖UᵀΔ‖² in the dominant subspace U of the sum; `crossed` [T] is ‖(Σ others) Δᵀ‖², `own` ‖ΔΔᵀ‖², both
    of matrices alone, as is `whole` ‖Δ‖².
    """

    products: tuple[tuple[float, ...], ...]
    size: float
    cancelled: float
    inside: tuple[float, ...]
    whole: tuple[float, ...]
    crossed: tuple[float, ...]
    own: tuple[float, ...]

    @property
    def norms(self) -> tuple[float, ...]:
        """‖τ‖ of each."""
        return tuple(row[index] ** 0.5 for index, row in enumerate(self.products))

    @property
    def cosine(self) -> float:
        """The mean cosine of all pairs; 0 of fewer than two."""
        norms, found = self.norms, []
        for i in range(len(norms)):
            found += [self.products[i][j] / (norms[i] * norms[j]) if norms[i] * norms[j] else 0.0 for j in range(i)]
        return sum(found) / len(found) if found else 0.0

    @property
    def conflict(self) -> float:
        """The share of all movement that opposite signs cancel: 0 none, 1 all."""
        return self.cancelled / self.size if self.size else 0.0

    @property
    def aligned(self) -> tuple[float, ...]:
        """The subspace alignment ratio ‖UᵀΔ‖/‖Δ‖ of each; 1 where the sum moves in all its directions."""
        return _roots(self.inside, self.whole, 1.0)

    @property
    def interference(self) -> tuple[float, ...]:
        """‖(Σ others) Δᵀ‖/‖ΔΔᵀ‖ of each: how loudly the others answer to its inputs, next to itself."""
        return _roots(self.crossed, self.own, 0.0)


def interference(vectors: Tensor) -> Interference:
    """Of task vectors [T, …] of one tensor; matrices [out, in] have subspaces, stacks of them are taken one by one."""
    count = len(vectors)
    flat = vectors.reshape(count, -1).double()
    products = (flat @ flat.T).tolist()
    size = float(flat.abs().sum())
    cancelled = size - float(flat.sum(0).abs().sum())
    zero = (0.0,) * count
    parts = [Interference(tuple(map(tuple, products)), size, cancelled, zero, zero, zero, zero)]
    if vectors.ndim >= 3:
        stacked = vectors.reshape(count, -1, *vectors.shape[-2:]).float()
        parts += [_subspaces(stacked[:, index]) for index in range(stacked.shape[1])]
    return together(parts)


def together(parts: Iterable[Interference]) -> Interference:
    """Of several tensors taken as one."""
    found = list(parts)

    def added(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
        return tuple(map(sum, zip(*rows, strict=True)))

    return Interference(
        tuple(added([part.products[row] for part in found]) for row in range(len(found[0].products))),
        sum(part.size for part in found),
        sum(part.cancelled for part in found),
        added([part.inside for part in found]),
        added([part.whole for part in found]),
        added([part.crossed for part in found]),
        added([part.own for part in found]),
    )


def _subspaces(matrices: Tensor) -> Interference:
    """Of matrices [T, out, in]: only what concerns subspaces."""
    count, total = len(matrices), matrices.sum(0)
    basis = _dominant(total)
    inside = [float((basis.T @ matrix).square().sum()) for matrix in matrices]
    whole = [float(matrix.square().sum()) for matrix in matrices]
    probe = torch.randn(matrices.shape[1], _PROBES, generator=torch.Generator().manual_seed(0)).to(matrices.device)
    crossed, own = [], []
    for matrix in matrices:
        answer = matrix.T @ probe
        own.append(float((matrix @ answer).square().sum()) / _PROBES)
        crossed.append(float(((total - matrix) @ answer).square().sum()) / _PROBES)
    none = tuple((0.0,) * count for _ in range(count))
    return Interference(none, 0.0, 0.0, tuple(inside), tuple(whole), tuple(crossed), tuple(own))


def _dominant(matrix: Tensor) -> Tensor:
    """Left singular vectors that hold most of a matrix's energy, [out, k]."""
    if min(matrix.shape) <= 2 * _DIRECTIONS:
        left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    else:
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(matrix.shape[1], _DIRECTIONS, generator=generator).to(matrix.device)
        sketch = torch.linalg.qr(matrix @ probe).Q
        sketch = torch.linalg.qr(matrix @ (matrix.T @ sketch)).Q
        inner, values, _ = torch.linalg.svd(sketch.T @ matrix, full_matrices=False)
        left = sketch @ inner
    square = values.double().square().cumsum(0)
    wanted = _ENERGY * float(matrix.double().square().sum())
    return left[:, : int((square < wanted).sum()) + 1]


def _roots(parts: Sequence[float], wholes: Sequence[float], empty: float) -> tuple[float, ...]:
    return tuple((part / whole) ** 0.5 if whole else empty for part, whole in zip(parts, wholes, strict=True))
