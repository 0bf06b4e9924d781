"""Breadcrumbs with the sign election of TIES."""

from fractions import Fraction
from typing import Literal

from torch import Tensor

from surgeon.space.consensus import disjoint_merge
from surgeon.space.method import merge_method
from surgeon.space.parameters import PerModel, TaskVectors, each
from surgeon.space.selection import Band, magnitude_band
from surgeon.space.sparsify import band_norms, restored
from surgeon.space.statistics import Table, means


@merge_method(
    blocks="elements",
    ranges={"density": "(0, 1]", "gamma": "[0, 1)", "least": "[0, inf)"},
    mergekit={
        "least": (Fraction(0), "a tensor whose density comes to no entry loses its change; here it keeps one"),
        "elect": ("weighted", "signs are elected by weighted task vectors, TIES' by trimmed ones alone"),
        "normalize": (False, "agreeing values are summed unless the recipe says normalize; TIES averages them"),
    },
)
def breadcrumbs_ties(
    task_vectors: TaskVectors,
    weight: PerModel[float] = each(1.0),
    density: PerModel[float] = each(1.0),
    gamma: PerModel[float] = each(0.01),
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    least: int = 1,
    elect: Literal["trimmed", "weighted"] = "trimmed",
    band: Band = magnitude_band(),
    norms: Table = means(band_norms, 2, 0, rescale=True),
) -> Tensor:
    """Leave out the largest and smallest entries as `breadcrumbs` does, elect signs, average the values that agree.

    Formula: θ = θ₀ + λ Σ wᵢaᵢτ̂ᵢ / Σ wᵢaᵢ entry by entry, τ̂ᵢ = mᵢ ⊙ τᵢ as `breadcrumbs` masks it, γ = sign Σ τ̂ᵢ (+
    where the sum is 0), aᵢ = [sign τ̂ᵢ = γ].

    `elect: weighted` is what mergekit does; `normalize: false` sums.

    Use it as `breadcrumbs` where models also disagree in sign; of task vectors that hardly touch it throws more away
    than a plain sum.

    Paper: https://arxiv.org/abs/2312.06795, https://arxiv.org/abs/2306.01708
    """
    kept = band.trim(task_vectors)
    if rescale:
        kept = restored(kept, norms)
    votes = elect == "weighted"
    return disjoint_merge(kept, weight, normalize=normalize, lambda_=lambda_, weigh_votes=votes)
