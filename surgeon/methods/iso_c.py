"""Iso-C: the sum of the task vectors with an even spectrum."""

from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.numeric import column, total
from surgeon.space.parameters import PerModel, TaskVectors, each
from surgeon.space.spectral import decompose, each_matrix


@merge_method(equivariant="both", breaks={"one_model": "a single task vector's spectrum is made even too"})
def iso_c(task_vectors: TaskVectors, weight: PerModel[float] = each(1.0), lambda_: float = 1.0) -> Tensor:
    """Add the weighted task vectors, then give every singular direction of the sum the same singular value, their mean.

    Formula: θ = θ₀ + λ σ̄ UVᵀ, with Σ wᵢτᵢ = UΣVᵀ of numerical rank r and σ̄ = (σ₁ + … + σᵣ) / r.

    The directions of the sum's null space (adapters leave a large one) are arbitrary and stay empty. The spectrum
    spreads, so that `lambda` of 1 to 3 is usual. Vectors and other tensors that are no matrices: the mean.

    Use it for many tasks with strong directions in common; weak directions are raised too, so what was not trained on
    (chat) moves farther than with `tsv_m`, and `lambda` is to be chosen on data.

    Paper: https://arxiv.org/abs/2502.04959
    """
    return each_matrix(column(weight, task_vectors) * task_vectors, _merged).mul_(lambda_)


def _merged(matrices: Tensor) -> Tensor:
    u, s, vh = common = decompose(total(matrices))
    return (u @ vh).mul_(s.sum() / common.rank.clamp(min=1))
