"""PCB: weights for every entry, from competition within a task and between tasks."""

import torch
from torch import Tensor

from surgeon.space.magnitude import Cut, KthMagnitude
from surgeon.space.method import merge_method
from surgeon.space.numeric import exponential, total
from surgeon.space.parameters import PerModel, TaskVectors, each
from surgeon.space.statistics import Table, largest, means

_TINY = 1e-30


def products(task_vectors: Tensor) -> Tensor:
    """Products of all pairs of models, and the same with the other sign: [2, model, model, …]."""
    pairs = torch.stack([task_vectors * one for one in task_vectors])
    return torch.stack([pairs, -pairs])


def _relative(values: Tensor, highest: float, lowest: float) -> Tensor:
    """Values between their lowest and highest as numbers from 0 to 1."""
    return values.sub_(lowest).mul_(1 / (highest - lowest) if highest > lowest else 0.0)


def within(task_vectors: Tensor, extremes: Table) -> Tensor:
    """exp(N · norm(dᵢ²)) of each of N models: the numerator of its intra-balancing."""
    highest, lowest = extremes
    models = len(task_vectors)
    parts = [_relative(one * one, highest[i][i], -lowest[i][i]) for i, one in enumerate(task_vectors)]
    return exponential(torch.stack(parts).mul_(models), models)


def between(task_vectors: Tensor, extremes: Table) -> Tensor:
    """exp(norm(dᵢ dⱼ)) of each pair of models: the numerators of their inter-balancing, [model, model, …]."""
    highest, lowest = extremes
    rows = [
        torch.stack([_relative(one * other, highest[i][j], -lowest[i][j]) for j, other in enumerate(task_vectors)])
        for i, one in enumerate(task_vectors)
    ]
    return exponential(torch.stack(rows), 1)


def balances(task_vectors: Tensor, extremes: Table, own: Table, mutual: Table) -> Tensor:
    """softmax(N norm(dᵢ²)) ⊙ Σⱼ softmax(norm(dᵢ dⱼ)), up to one factor for all models."""
    found = within(task_vectors, extremes)
    for balance, pairs, mean, means_of in zip(found, between(task_vectors, extremes), own, mutual, strict=True):
        shares = torch.tensor(means_of, dtype=pairs.dtype, device=pairs.device)
        balance.mul_(1 / mean).mul_(total(pairs.div_(shares.reshape(-1, *[1] * (pairs.ndim - 1)))))
    return found


@merge_method(blocks="elements", ranges={"density": "(0, 1]"})
def pcb(
    task_vectors: TaskVectors,
    density: PerModel[float] = each(0.1),
    lambda_: float = 1.0,
    extremes: Table = largest(products, 2, 0, 0),
    own: Table = means(within),
    mutual: Table = means(between, 0, 0),
    cut: Cut = KthMagnitude("density", view=balances),  # type: ignore[assignment]
) -> Tensor:
    """Weigh every entry by how it stands out in its task vector and fits the others; keep the best, average by weight.

    Formula: θ = θ₀ + λ Σ βᵢτᵢ / Σ βᵢ entry by entry, βᵢ = softmax(N · norm(τᵢ²)) ⊙ Σⱼ softmax(norm(τᵢτⱼ)), of which the
    `density` largest are kept and the others 0; norm maps a tensor to [0, 1], softmax runs over its entries.

    Per tensor, N models; there are no weights to set.

    Use it for many full fine-tunes with few entries that matter; most changes are left out at the default density, so a
    skill spread over all weights, as by an adapter, is lost unless `lambda` or `density` is raised.

    Paper: https://arxiv.org/abs/2410.02396
    """
    weights = cut.trim(balances(task_vectors, extremes, own, mutual))
    merged = total(weights * task_vectors).div_(total(weights).clamp_min_(_TINY))
    return merged.mul_(lambda_)
