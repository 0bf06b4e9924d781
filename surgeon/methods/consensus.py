"""Consensus: task arithmetic without the entries that fewer than k tasks ask for, by TALL masks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.numeric import column, total
from surgeon.space.parameters import PerModel, TaskVectors, each


def tall_masks(task_vectors: Tensor, summed: Tensor, threshold: Sequence[float]) -> Tensor:
    """1 where |dᵢ| ≥ thresholdᵢ |sum − dᵢ|, so where a task matters to its entry of the sum, else 0: [model, …]."""
    others = torch.sub(summed, task_vectors).abs_().mul_(column(threshold, task_vectors))
    return 1 - others.sub_(task_vectors.abs()).relu_().sign_()


def _enough(k: int, models: int) -> str | None:
    return f"k is {k}, but there are {models} models: nothing would be kept" if k > models else None


@merge_method(
    blocks="elements",
    models=(2, None),
    ranges={"k": "[0, inf)", "threshold": "[0, inf)"},
    check=_enough,
)
def consensus(
    task_vectors: TaskVectors,
    weight: PerModel[float] = each(1.0),
    threshold: PerModel[float] = each(0.4),
    k: int = 2,
    lambda_: float = 1.0,
) -> Tensor:
    """Add the weighted task vectors, and keep of the sum the entries that matter to at least `k` of them.

    Formula: θ = θ₀ + λ [Σ mᵢ ≥ k] ⊙ S, S = Σ wᵢτᵢ, mᵢ = [wᵢ|τᵢ| ≥ thresholdᵢ · |S − wᵢτᵢ|].

    An entry matters to a task whose own change is at least `threshold` (the paper's lambda of a mask) times what the
    others add to it. `k: 0` is task arithmetic.

    Use it for many tasks (eight or more) that share entries; with few, most entries matter to one task alone, and those
    are thrown away.

    Paper: https://arxiv.org/abs/2405.07813
    """
    summed = total(column(weight, task_vectors) * task_vectors)
    wanted = total(tall_masks(task_vectors, summed, threshold))
    kept = wanted.sub_(k - 0.5).relu_().sign_()
    return kept.mul_(summed).mul_(lambda_)
