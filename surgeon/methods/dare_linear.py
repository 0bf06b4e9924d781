"""DARE: drop entries at random and rescale what is left, then add up."""

from typing import Literal

from torch import Tensor

from surgeon.space.consensus import weighted_sum
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
        "rescale_by": ("norm", "what is kept gets the L1 norm of the whole; the paper divides it by the density")
    },
)
def dare_linear(
    task_vectors: TaskVectors,
    noise: Noise,
    weight: PerModel[float] = each(1.0),
    density: PerModel[float] = each(1.0),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    rescale_by: Literal["density", "norm"] = "density",
    norms: Table = means(drop_norms, 2, 0, rescale=True, rescale_by="norm"),
) -> Tensor:
    """Keep each entry of a task vector with the chance `density`, divide it by that, add the weighted task vectors.

    Formula: θ = θ₀ + λ Σ wᵢ (mᵢ ⊙ τᵢ) / pᵢ, each entry of mᵢ 1 with the chance pᵢ = `density`, else 0.

    `rescale: false` leaves out the division, `rescale_by: norm` gives every thinned tensor the L1 norm it had before
    instead, as mergekit does. `normalize` divides by the sum of weights.

    Use it for full fine-tunes with small changes, or to compare with recipes that have it: the mean over seeds is plain
    task arithmetic, a low density adds noise, and changes above some 0.01 an entry do not survive it.

    Paper: https://arxiv.org/abs/2311.03099
    """
    kept = drop(task_vectors, noise, density)
    if rescale:
        kept = restored(kept, norms) if rescale_by == "norm" else kept.div_(column(density, kept))
    return weighted_sum(kept, weight, normalize=normalize, lambda_=lambda_)
