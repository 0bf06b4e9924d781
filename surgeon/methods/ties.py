"""TIES: trim, elect signs, merge what agrees."""

from typing import Literal

from torch import Tensor

from surgeon.space.consensus import disjoint_merge
from surgeon.space.magnitude import Cut, kth_magnitude
from surgeon.space.method import merge_method
from surgeon.space.parameters import PerModel, TaskVectors, each
from surgeon.space.sparsify import restored, trim_norms
from surgeon.space.statistics import Table, means


@merge_method(
    blocks="elements",
    ranges={"density": "(0, 1]"},
    mergekit={
        "elect": ("weighted", "signs are elected by weighted task vectors, the paper's by trimmed ones alone"),
        "over": ("tensor", ""),
    },
)
def ties(
    task_vectors: TaskVectors,
    weight: PerModel[float] = each(1.0),
    density: PerModel[float] = each(1.0),
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    elect: Literal["trimmed", "weighted"] = "trimmed",
    over: Literal["tensor", "model"] = "tensor",
    cut: Cut = kth_magnitude("density"),
    norms: Table = means(trim_norms, 2, 0, rescale=True),
) -> Tensor:
    """Keep each task vector's largest entries, elect a sign for every entry, average the values that agree with it.

    Formula: θ = θ₀ + λ Σ wᵢaᵢτ̂ᵢ / Σ wᵢaᵢ entry by entry, τ̂ᵢ the `density` largest |τᵢ| and 0 elsewhere, γ = sign Σ
    τ̂ᵢ (+ where the sum is 0), aᵢ = [sign τ̂ᵢ = γ].

    `elect: weighted` weighs the votes too, as mergekit does; `over: model` trims over the whole model, as the paper's
    code does. `normalize: false` sums. `rescale` gives every trimmed task vector, tensor by tensor, the L1 norm it had
    before.

    Use it when models change the same entries in opposite directions; task vectors that hardly touch, as of most LoRA
    skills, gain little by an election, and a plain sum of the right weight may keep more.

    Paper: https://arxiv.org/abs/2306.01708
    """
    trimmed = cut.trim(task_vectors)
    if rescale:
        trimmed = restored(trimmed, norms)
    votes = elect == "weighted"
    return disjoint_merge(trimmed, weight, normalize=normalize, lambda_=lambda_, weigh_votes=votes)
