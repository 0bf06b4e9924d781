"""Breadcrumbs: leave out the largest and the smallest entries, add up the rest."""

from fractions import Fraction

from torch import Tensor

from surgeon.space.consensus import weighted_sum
from surgeon.space.method import merge_method
from surgeon.space.parameters import PerModel, TaskVectors, each
from surgeon.space.selection import Band, magnitude_band
from surgeon.space.sparsify import band_norms, restored
from surgeon.space.statistics import Table, means


@merge_method(
    blocks="elements",
    ranges={"density": "(0, 1]", "gamma": "[0, 1)", "least": "[0, inf)"},
    mergekit={"least": (Fraction(0), "a tensor whose density comes to no entry loses its change; here it keeps one")},
)
def breadcrumbs(
    task_vectors: TaskVectors,
    weight: PerModel[float] = each(1.0),
    density: PerModel[float] = each(1.0),
    gamma: PerModel[float] = each(0.01),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    least: int = 1,
    band: Band = magnitude_band(),
    norms: Table = means(band_norms, 2, 0, rescale=True),
) -> Tensor:
    """Leave out of each task vector, tensor by tensor, its `gamma` largest entries; keep the `density` next; add up.

    Formula: θ = θ₀ + λ Σ wᵢ (mᵢ ⊙ τᵢ), over Σ wᵢ with `normalize`; mᵢ = 1 on the `density`·n entries of a tensor that
    follow the `gamma`·n largest |τᵢ|, else 0.

    The paper's beta, the share of the smallest that is left out, is 1 − gamma − density. Where the two do not fit,
    fewer of the largest are left out; a density of 1 keeps all. At `least` so many entries of a tensor are kept.
    `rescale` gives what is kept the L1 norm of the whole.

    Use it when a few outliers of full fine-tunes do harm and the smallest changes are noise; a skill that rests on the
    largest entries goes with them.

    Paper: https://arxiv.org/abs/2312.06795
    """
    kept = band.trim(task_vectors)
    if rescale:
        kept = restored(kept, norms)
    return weighted_sum(kept, weight, normalize=normalize, lambda_=lambda_)
