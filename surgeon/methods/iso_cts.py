"""Iso-CTS: Iso-C with room for what is specific to each task."""

import torch
from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.numeric import column, total
from surgeon.space.parameters import PerModel, TaskVectors, each
from surgeon.space.spectral import NEGLIGIBLE, decompose, each_matrix, packed, whitened


@merge_method(
    equivariant="both",
    ranges={"common_fraction": "[0, 1]"},
    breaks={"one_model": "a single task vector's spectrum is made even too"},
)
def iso_cts(
    task_vectors: TaskVectors,
    weight: PerModel[float] = each(1.0),
    common_fraction: float = 0.8,
    lambda_: float = 1.0,
) -> Tensor:
    """Keep the leading directions of the sum, fill the rest with each model's own directions, even out the spectrum.

    Formula: θ = θ₀ + λ σ̄ polar(U) polar(V)ᵀ; the columns of U and V are the leading k singular directions of Σ wᵢτᵢ =
    U₀ΣV₀ᵀ (rank r), then the leading (r − k)/N of each (I − UₖUₖᵀ) wᵢτᵢ; σ̄ is the mean of their singular values.

    k is `common_fraction` of r, and more where the rest is no multiple of N; 1 is Iso-C. Ranks are numerical. Vectors
    and other tensors that are no matrices: the mean.

    Use it instead of `iso_c` when tasks are many (more than about eight): what is peculiar to each then has room of its
    own; with few the two come to nearly the same.

    Paper: https://arxiv.org/abs/2502.04959
    """
    weighted = column(weight, task_vectors) * task_vectors
    return each_matrix(weighted, lambda matrices: _merged(matrices, common_fraction)).mul_(lambda_)


def _merged(matrices: Tensor, fraction: float) -> Tensor:
    common = decompose(total(matrices))
    places = torch.arange(len(common.s), device=matrices.device)
    own = (common.rank - (common.rank * fraction + 1e-9).floor().long()) // len(matrices)
    shared = common.rank - own * len(matrices)
    span = common.u * (places < shared)
    # What is left of a model that lies in the common space altogether is rounding.
    least = NEGLIGIBLE * common.s[0]
    rests = (matrix - span @ (span.T @ matrix) for matrix in matrices.double())
    parts = [common, *(decompose(rest, least) for rest in rests)]
    counts = torch.stack([shared, *(torch.minimum(own, part.rank) for part in parts[1:])])
    u, s, vh = whitened(packed(parts, places < counts.unsqueeze(1), len(places)))
    return (u @ vh).mul_(s.sum() / counts.sum().clamp(min=1))
