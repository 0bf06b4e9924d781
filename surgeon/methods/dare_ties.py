"""DARE with the sign election of TIES."""

from typing import Literal

from torch import Tensor

from surgeon.space.consensus import disjoint_merge
from surgeon.space.method import merge_method
from surgeon.space.noise import Noise
from surgeon.space.numeric import column
from surgeon.space.parameters import PerModel, TaskVectors, each
from surgeon.space.sparsify import drop, drop_norms, restored
from surgeon.space.statistics import Table, means


@merge_method(
    blocks="elements",
    ranges={"density": "(0, 1]"},
    mergekit={
        "rescale_by": ("norm", "what is kept gets the L1 norm of the whole; the paper divides it by the density"),
        "elect": ("weighted", "signs are elected by weighted task vectors, the paper's by thinned ones alone"),
        "normalize": (False, "agreeing values are summed unless the recipe says normalize; TIES averages them"),
    },
)
def dare_ties(
    task_vectors: TaskVectors,
    noise: Noise,
    weight: PerModel[float] = each(1.0),
    density: PerModel[float] = each(1.0),
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
    rescale_by: Literal["density", "norm"] = "density",
    elect: Literal["thinned", "weighted"] = "thinned",
    norms: Table = means(drop_norms, 2, 0, rescale=True, rescale_by="norm"),
) -> Tensor:
    """Thin out task vectors as `dare_linear` does, elect a sign for every entry, average the values that agree.

    Formula: θ = θ₀ + λ Σ wᵢaᵢτ̂ᵢ / Σ wᵢaᵢ entry by entry, τ̂ᵢ = (mᵢ ⊙ τᵢ) / pᵢ as `dare_linear` thins it, γ = sign Σ
    τ̂ᵢ (+ where the sum is 0), aᵢ = [sign τ̂ᵢ = γ].

    `rescale_by: norm` and `elect: weighted` are what mergekit does; `normalize: false` sums.

    Use it as `ties` for models with many small changes: thinned task vectors collide less; it is random, so compare
    seeds, and a low density adds noise.

    Paper: https://arxiv.org/abs/2311.03099, https://arxiv.org/abs/2306.01708
    """
    kept = drop(task_vectors, noise, density)
    if rescale:
        kept = restored(kept, norms) if rescale_by == "norm" else kept.div_(column(density, kept))
    votes = elect == "weighted"
    return disjoint_merge(kept, weight, normalize=normalize, lambda_=lambda_, weigh_votes=votes)
