"""DELLA: a drop that spares large entries, an election of signs, a mean of what agrees."""

from typing import Literal

from torch import Tensor

from surgeon.space.consensus import disjoint_merge
from surgeon.space.method import merge_method
from surgeon.space.noise import Noise
from surgeon.space.parameters import PerModel, TaskVectors, each
from surgeon.space.sparsify import chances_by_rank, rank_norms, restored, survivors, window_fault
from surgeon.space.statistics import Table, means


@merge_method(
    blocks="rows",
    ranges={"density": "(0, 1]", "epsilon": "[0, 1)"},
    check=window_fault,
    mergekit={
        "window": ("either_side", "chances span twice epsilon; the paper's span epsilon"),
        "rescale_by": ("norm", "what is kept gets the L1 norm of the whole; the paper divides it by its chance"),
        "elect": ("weighted", "signs are elected by weighted task vectors, the paper's by thinned ones alone"),
    },
)
def della(
    task_vectors: TaskVectors,
    noise: Noise,
    weight: PerModel[float] = each(1.0),
    density: PerModel[float] = each(1.0),
    epsilon: PerModel[float] = each(0.15),
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
    window: Literal["width", "either_side"] = "width",
    rescale_by: Literal["chance", "norm"] = "chance",
    elect: Literal["thinned", "weighted"] = "thinned",
    norms: Table = means(rank_norms, 2, 0, rescale=True, rescale_by="norm"),
) -> Tensor:
    """Thin out task vectors as `della_linear` does, elect a sign for every entry, average the values that agree.

    Formula: θ = θ₀ + λ Σ wᵢaᵢτ̂ᵢ / Σ wᵢaᵢ entry by entry, τ̂ᵢ = (mᵢ ⊙ τᵢ) / pᵢ as `della_linear` thins it, γ = sign Σ
    τ̂ᵢ (+ where the sum is 0), aᵢ = [sign τ̂ᵢ = γ].

    `window: either_side`, `rescale_by: norm` and `elect: weighted` are what mergekit does; `normalize: false` sums.

    Use it as `dare_ties` at low densities, where sparing large entries costs less of a skill; it is random, so compare
    seeds.

    Paper: https://arxiv.org/abs/2406.11617
    """
    chances = chances_by_rank(task_vectors, density, epsilon, window)
    kept = survivors(task_vectors, noise, chances)
    if rescale:
        kept = restored(kept, norms) if rescale_by == "norm" else kept.div_(chances)
    votes = elect == "weighted"
    return disjoint_merge(kept, weight, normalize=normalize, lambda_=lambda_, weigh_votes=votes)
