"""RegMean++: RegMean with what the layers read behind the blocks that are merged already."""

from torch import Tensor

from surgeon.methods.regmean import regmean
from surgeon.space.method import merge_method
from surgeon.space.parameters import MergedGram, PerModel, TaskVectors, each, on_base


@merge_method(ranges={"weight": "[0, inf)", "guard": "[0, inf)", "reduction": "[0, 1]", "ridge": "(0, inf)"})
def regmean_pp(
    task_vectors: TaskVectors,
    gram: PerModel[MergedGram],
    weight: PerModel[float] = each(1.0),
    base_gram: MergedGram = on_base("guard"),
    guard: float = 4.0,
    reduction: float = 1.0,
    ridge: float = 1e-2,
) -> Tensor:
    """Solve as `regmean` does, with Grams that are measured block after block behind the blocks merged so far.

    Formula: θ = θ₀ + (Σ wᵢτᵢGᵢ)(Σ wᵢGᵢ + gG₀)⁻¹ block by block, the Grams of a block those of what it reads behind the
    blocks merged so far.

    All models' Grams belong to one merge and are measured together, with its own settings: write `gram: {fit:
    merged_gram, prompts: FILE}` for each model. The other settings are those of `regmean`.

    Use it as `regmean` for deep models, where merging early blocks changes what later ones read; Grams cannot be reused
    for other weights, so that every setting tried is measured anew.

    Paper: https://arxiv.org/abs/2508.03121
    """
    settings = {"weight": weight, "guard": guard, "reduction": reduction, "ridge": ridge}
    return regmean.function(task_vectors, gram=gram, base_gram=base_gram, **settings)
