"""The weighted average of models."""

from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.numeric import column, total
from surgeon.space.parameters import Models, PerModel


@merge_method(blocks="elements")
def linear(models: Models, weight: PerModel[float], normalize: bool = True) -> Tensor:
    """Average the models with the given weights, or just add them up when `normalize` is off.

    Formula: θ = Σ wᵢθᵢ / Σ wᵢ, or Σ wᵢθᵢ without `normalize`.

    Computed as θ₁ + Σ wᵢ(θᵢ − θ₁), so that equal models give exactly themselves.

    Use it for checkpoints of one training or fine-tunes of one task (soups); of N different skills each is left with a
    fraction of its change, and nearly orthogonal ones, as of LoRA adapters, may all be lost.

    Paper: https://arxiv.org/abs/2203.05482
    """
    mass = sum(weight)
    if normalize and not mass:
        raise ValueError(f"the weights {', '.join(f'{each:g}' for each in weight)} cancel; `normalize: false` adds up")
    share = [w / mass for w in weight] if normalize else list(weight)
    if not share[0]:
        # A weight of zero is no anchor: what is left over alone then gives exactly itself.
        kept = [i for i, w in enumerate(share) if w] or [0]
        models, share = models[kept], [share[i] for i in kept]
    first = models[0] if normalize or mass == 1 else models[0] * mass
    if len(models) == 1:
        return first.clone()
    moved = models[1:] - models[0]
    moved *= column(share[1:], models)
    return total(moved).add_(first)
