"""Fisher-weighted averaging: each weight counts as much as it matters to its model."""

import torch
from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.numeric import column, total
from surgeon.space.parameters import Fisher, PerModel, TaskVectors, each, on_base


@merge_method(blocks="elements", ranges={"weight": "[0, inf)", "guard": "[0, inf)", "floor": "(0, inf)"})
def fisher(
    task_vectors: TaskVectors,
    fisher: PerModel[Fisher],
    weight: PerModel[float] = each(1.0),
    base_fisher: Fisher = on_base("guard"),
    guard: float = 0.0,
    floor: float = 1e-30,
) -> Tensor:
    """Average the models entry by entry, each weighed by its Fisher information there: Δ = Σ wFₜΔₜ / Σ wFₜ.

    Formula: θ = θ₀ + Σ wᵢFᵢτᵢ / (Σ wᵢFᵢ + gF₀) entry by entry, Fᵢ the diagonal Fisher information of model i on its
    data, F₀ the base's on neutral text, g the `guard`; `floor` is added to every F.

    Entries that matter to none take the weighted mean, as do tensors without a Fisher.

    Use it for fine-tunes of one task or of close ones, with a little data of each; it knows nothing of how weights work
    together, and `regmean` with the same data usually keeps more.

    Paper: https://arxiv.org/abs/2111.09832
    """
    if not sum(weight):
        raise ValueError("all weights are 0: nothing is left of the models")
    held = [one for one in fisher if one is not None]
    if not held:
        return total(column(weight, task_vectors) * task_vectors) / sum(weight)
    shares = [(one + floor) * share for one, share in zip(held, weight, strict=True)]
    moved = total(torch.stack([own * vector for own, vector in zip(shares, task_vectors, strict=True)]))
    if base_fisher is not None and guard:
        shares.append((base_fisher + floor) * guard)
    return moved.div_(total(torch.stack(shares)))
