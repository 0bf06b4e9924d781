"""RegMean: the matrices whose outputs are nearest to every model's own, on that model's data."""

import torch
from torch import Tensor

from surgeon.space.least_squares import shrunk, solved
from surgeon.space.method import merge_method
from surgeon.space.numeric import column, total
from surgeon.space.parameters import Gram, PerModel, TaskVectors, each, on_base


@merge_method(ranges={"weight": "[0, inf)", "guard": "[0, inf)", "reduction": "[0, 1]", "ridge": "(0, inf)"})
def regmean(
    task_vectors: TaskVectors,
    gram: PerModel[Gram],
    weight: PerModel[float] = each(1.0),
    base_gram: Gram = on_base("guard"),
    guard: float = 4.0,
    reduction: float = 1.0,
    ridge: float = 1e-2,
) -> Tensor:
    """Solve ΔW Σ Gₜ = Σ ΔWₜ Gₜ: the least squares fit to what each model's layer gives for what it reads.

    Formula: θ = θ₀ + (Σ wᵢτᵢGᵢ)(Σ wᵢGᵢ + gG₀)⁻¹, Gᵢ the Gram XᵢᵀXᵢ of what model i's layer reads on its data, G₀ the
    base's on neutral text, g the `guard`.

    Off-diagonals of Grams are multiplied by `reduction`, diagonals by 1 + `ridge`. The paper shrinks by .9; on language
    models no shrinkage keeps most. The guard keeps what the models were not trained on. Tensors without a Gram
    (embeddings, norms, biases, experts held as one array) take the weighted mean.

    Use it when some 64 prompts of each skill are at hand: few methods keep more of different skills; Grams cost a
    forward pass and much memory, and skills in embeddings are only averaged.

    Paper: https://arxiv.org/abs/2212.09849
    """
    if not sum(weight):
        raise ValueError("all weights are 0: nothing is left of the models")
    held = [one for one in gram if one is not None]
    if not held:
        return total(column(weight, task_vectors) * task_vectors) / sum(weight)
    left, right = (torch.zeros_like(one, dtype=torch.float64) for one in (held[0], task_vectors[0]))
    for vector, one, share in zip(task_vectors, held, weight, strict=True):
        moments = shrunk(one, reduction, ridge) * share
        left += moments
        right += vector.double() @ moments
    if base_gram is not None and guard:
        left += shrunk(base_gram, reduction, ridge) * guard
    return solved(left, right).to(task_vectors.dtype)
