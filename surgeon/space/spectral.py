"""Spectra of task vectors: singular values and polar factors whose shapes are known beforehand, ranks as masks.

All of it runs in float64 through the eigenvalues of Gram matrices: as exact as float32 inputs allow down to singular
values of `NEGLIGIBLE` times the largest, as quick as a float32 SVD, and on `meta` too. Directions below that have no
meaning (the null space of a sum of adapters, rounding) and come out as zeros, never as arbitrary vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from surgeon.space.numeric import sign_of, total

#: Singular values below this share of the largest are rounding: float32 products leave some 1e-7.
NEGLIGIBLE = 1e-5


class Svd(NamedTuple):
    """A matrix [m, n] as u·diag(s)·vh, p = min(m, n), largest first; all three are zero beyond its rank."""

    u: Tensor
    s: Tensor
    vh: Tensor

    @property
    def matrix(self) -> Tensor:
        """The product, [m, n]."""
        return (self.u * self.s) @ self.vh

    @property
    def rank(self) -> Tensor:
        """The numerical rank, a tensor with one number."""
        return (self.s != 0).sum()


def mean(task_vectors: Tensor) -> Tensor:
    """The mean over models: what spectral methods do with tensors that are no matrices, as their papers' code does."""
    return total(task_vectors) / len(task_vectors)


def each_matrix(
    task_vectors: Tensor, merge: Callable[[Tensor], Tensor], otherwise: Callable[[Tensor], Tensor] = mean
) -> Tensor:
    """`merge` of a matrix, [model, m, n] → [m, n], or of each of a stack of matrices (experts) by itself.

    Tensors of another number of axes, such as norms and biases, get `otherwise`.
    """
    if task_vectors.ndim == 3:
        return merge(task_vectors).to(task_vectors.dtype)
    if task_vectors.ndim == 4:
        merged = torch.empty_like(task_vectors[0])
        for index in range(len(merged)):
            merged[index] = merge(task_vectors[:, index])
        return merged
    return otherwise(task_vectors)


def reciprocal(values: Tensor) -> Tensor:
    """1/x where x is not zero, else 0."""
    return torch.where(values == 0, 0.0, 1 / torch.where(values == 0, 1.0, values))


def symmetric(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and eigenvectors as columns, of a symmetric float64 matrix."""
    side = len(matrix)
    # What LAPACK's syevd takes for itself: never written, so it costs nothing, but dry runs of memory see it.
    workspace = matrix.new_empty(2 * side * side + 6 * side + 1)
    values, vectors = torch.linalg.eigh(matrix)
    del workspace
    return values.flip(0), vectors.flip(1)


def decompose(matrix: Tensor, least: Tensor | None = None) -> Svd:
    """The singular value decomposition in float64; singular values up to `least` (`NEGLIGIBLE` · s₁) count as zero."""
    if matrix.shape[0] > matrix.shape[1]:
        u, s, vh = decompose(matrix.T, least)
        return Svd(vh.T, s, u.T)
    matrix = matrix.double()
    values, u = symmetric(matrix @ matrix.T)
    s = values.clamp_(min=0).sqrt_()
    s = s * ((s > (NEGLIGIBLE * s[0] if least is None else least)) | s.isnan())  # NaN has to be seen in the result
    return Svd(u * (s > 0), s, reciprocal(s).unsqueeze(1) * (u.T @ matrix))


def polar(columns: Tensor) -> Tensor:
    """The orthonormal factor of a polar decomposition, C(CᵀC)^(-1/2): the nearest orthonormal columns, float64 [d, k].

    Columns that depend on one another share what they span: the factor is then a partial isometry.
    """
    values, vectors = symmetric(columns.T @ columns)
    root = values.clamp(min=0).sqrt()
    return columns @ ((vectors * reciprocal(root * (root > NEGLIGIBLE * root[0]))) @ vectors.T)


def packed(parts: Sequence[Svd], kept: Tensor, size: int) -> Svd:
    """The kept singular triplets of several decompositions as one of fixed size; `kept` [part, p], at most `size` true.

    Not a decomposition of a matrix yet: the directions of different parts are not orthogonal.
    """
    order = torch.argsort(kept.flatten().logical_not().to(torch.uint8), stable=True)[:size]
    chosen = kept.flatten()[order]
    u = torch.cat([part.u for part in parts], 1)[:, order] * chosen
    vh = torch.cat([part.vh for part in parts])[order] * chosen.unsqueeze(1)
    return Svd(u, torch.cat([part.s for part in parts])[order] * chosen, vh)


def whitened(triplets: Svd) -> Svd:
    """The same singular values along the nearest directions that are orthonormal."""
    return Svd(polar(triplets.u), triplets.s, polar(triplets.vh.T).T)


def signed(parts: Svd) -> Svd:
    """The same decomposition with signs pinned: the largest entry of every row of vh is positive."""
    largest = parts.vh.gather(1, parts.vh.abs().argmax(1, keepdim=True))
    sign = sign_of(largest)
    return Svd(parts.u * sign.T, parts.s, parts.vh * sign)
