"""DELLA's drop, which spares large entries, then a plain sum."""

from typing import Literal

from torch import Tensor

from surgeon.space.consensus import weighted_sum
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
    },
)
def della_linear(
    task_vectors: TaskVectors,
    noise: Noise,
    weight: PerModel[float] = each(1.0),
    density: PerModel[float] = each(1.0),
    epsilon: PerModel[float] = each(0.15),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    window: Literal["width", "either_side"] = "width",
    rescale_by: Literal["chance", "norm"] = "chance",
    norms: Table = means(rank_norms, 2, 0, rescale=True, rescale_by="norm"),
) -> Tensor:
    """Keep entries with chances that grow by rank of magnitude within a row, divide by the chance, add up.

    Formula: θ = θ₀ + λ Σ wᵢ (mᵢ ⊙ τᵢ) / pᵢ, each entry of mᵢ 1 with its chance pᵢ = density − ε/2 + ε · rank / (n − 1),
    rank 0 to n − 1 of |τᵢ| within its row of n, ε `epsilon`.

    In mergekit (`window: either_side`) chances run from density − ε to density + ε. The mean over seeds is task
    arithmetic; `rescale_by: norm` gives every thinned tensor the L1 norm it had before instead. A vector is one row.

    Use it as `dare_linear` at low densities, with less noise since large entries are mostly kept; where a plain sum
    does not fail it brings nothing.

    Paper: https://arxiv.org/abs/2406.11617
    """
    chances = chances_by_rank(task_vectors, density, epsilon, window)
    kept = survivors(task_vectors, noise, chances)
    if rescale:
        kept = restored(kept, norms) if rescale_by == "norm" else kept.div_(chances)
    return weighted_sum(kept, weight, normalize=normalize, lambda_=lambda_)
