"""How task vectors that were thinned out become one: a weighted sum, or the mean of what agrees in sign."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surgeon.space.numeric import column, sign_of, total


def weighted_sum(vectors: Tensor, weight: Sequence[float], *, normalize: bool, lambda_: float) -> Tensor:
    """lambda Σ wᵢ dᵢ of task vectors d [model, …], over Σ wᵢ where `normalize` (and that is not zero)."""
    mass = sum(weight) if normalize else 1.0
    scale = lambda_ / (mass if abs(mass) >= 1e-8 else 1.0)
    return total(column([w * scale for w in weight], vectors) * vectors)


def disjoint_merge(
    vectors: Tensor, weight: Sequence[float], *, normalize: bool, lambda_: float, weigh_votes: bool
) -> Tensor:
    """lambda times the weighted mean (the sum, unless `normalize`) of the values that have the elected sign.

    Every entry elects the sign of its sum over the models, + where that is zero; `weigh_votes` weighs them in the
    election too. The task vectors, [model, …], are overwritten. TIES: https://arxiv.org/abs/2306.01708, section 4.
    """
    scale = column(weight, vectors)
    votes = vectors.mul_(scale) if weigh_votes else vectors
    elected = sign_of(total(votes))
    agreeing = votes.mul_(elected).relu_()
    mass = total(torch.sign(agreeing).mul_(scale)) if normalize else None
    merged = total(agreeing if weigh_votes else agreeing.mul_(scale)).mul_(elected)
    if mass is not None:
        merged /= mass.add_(1 - torch.sign(mass).abs_())
    return merged.mul_(lambda_)
