"""TSV-M: task singular vectors, each model's own directions made orthogonal to the others'."""

from collections.abc import Sequence

import torch
from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.numeric import column
from surgeon.space.parameters import PerModel, TaskVectors, each
from surgeon.space.spectral import decompose, each_matrix, packed, whitened


@merge_method(equivariant="both", ranges={"rank_fraction": "(0, 1]"})
def tsv_m(
    task_vectors: TaskVectors,
    weight: PerModel[float] = each(1.0),
    rank_fraction: PerModel[float] = each(1.0),
    lambda_: float = 1.0,
) -> Tensor:
    """Keep the leading singular directions of every task vector, make them all orthogonal, add them up.

    Formula: θ = θ₀ + λ polar([U₁ … U_N]) diag(Σ₁ … Σ_N) polar([V₁ … V_N])ᵀ, with UᵢΣᵢVᵢᵀ the leading singular triplets
    of wᵢτᵢ and polar(C) = C(CᵀC)^(−1/2).

    As many directions are kept as fit, the same number of each model where not all fit: r/N of full-rank task vectors,
    as in the paper, and all of LoRA adapters. `rank_fraction` keeps less. Vectors and other tensors that are no
    matrices: the mean.

    Use it for several different skills when there is no data: making their directions orthogonal stops one from
    answering for another; the price is a decomposition of every matrix of every model.

    Paper: https://arxiv.org/abs/2412.00081
    """
    weighted = column(weight, task_vectors) * task_vectors
    return each_matrix(weighted, lambda matrices: _merged(matrices, rank_fraction)).mul_(lambda_)


def _merged(matrices: Tensor, fractions: Sequence[float]) -> Tensor:
    parts = [decompose(matrix) for matrix in matrices]
    places = torch.arange(len(parts[0].s), device=matrices.device)
    kept = places < _counts(torch.stack([part.rank for part in parts]), len(places), fractions).unsqueeze(1)
    return whitened(packed(parts, kept, max(len(places), len(parts)))).matrix


def _counts(ranks: Tensor, room: int, fractions: Sequence[float]) -> Tensor:
    """How many directions of each model are kept, [model]: at least one, else its share of the most that fit."""
    depths = torch.arange(room + 1, device=ranks.device)
    fits = torch.minimum(ranks.unsqueeze(1), depths).sum(0) <= room
    deepest = torch.minimum(ranks, (fits.sum() - 1).clamp(min=1))
    # The small number keeps 0.29 · 100 = 28.999… from losing a direction.
    share = torch.tensor(fractions, dtype=torch.float64, device=ranks.device) * deepest + 1e-9
    return torch.minimum(share.floor().clamp(min=1).long(), deepest)
