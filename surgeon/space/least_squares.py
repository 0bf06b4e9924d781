"""Least squares over Grams, in float64: what matrices do to inputs whose second moments are known."""

from __future__ import annotations

import torch
from torch import Tensor

#: What a feature that is never read is given, of the mean, times the ridge; and where none is read at all.
_TRACE, _LEAST = 1e-6, 1e-30


def shrunk(gram: Tensor, reduction: float = 1.0, ridge: float = 0.0) -> Tensor:
    """A Gram [d, d] in float64, its off-diagonals times `reduction`, each diagonal entry times 1 + `ridge`.

    Fewer tokens than features leave a Gram singular, and the rounding of its float32 entries, each by a share of
    √(GᵢᵢGⱼⱼ), leaves it without a sign; a ridge of about √d such shares, of each entry's own size, mends both. Features
    that are never read get a trace, so that the models count alike there.
    """
    wide = gram.double() * reduction
    diagonal = gram.diagonal().double()
    wide.diagonal().copy_(diagonal * (1 + ridge) + (_TRACE * ridge * diagonal.mean()).clamp_min(_LEAST))
    return wide


def solved(left: Tensor, right: Tensor) -> Tensor:
    """X [n, d] with X·left = right, `left` [d, d] symmetric and positive, by Cholesky. ValueError where it is not."""
    try:
        factor = torch.linalg.cholesky(left)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        raise ValueError("the Grams do not determine the result: raise ridge, or measure on more prompts") from None
    return torch.cholesky_solve(right.mT, factor).mT
