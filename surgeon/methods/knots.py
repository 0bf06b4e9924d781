"""KnOTS: other merge methods, in a space where the task vectors are aligned."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.noise import Noise
from surgeon.space.numeric import column, sign_of, total
from surgeon.space.parameters import PerModel, TaskVectors, each
from surgeon.space.spectral import decompose, each_matrix, mean, reciprocal, signed


@merge_method(equivariant="left", ranges={"density": "(0, 1]"})
def knots(
    task_vectors: TaskVectors,
    noise: Noise,
    weight: PerModel[float] = each(1.0),
    density: PerModel[float] = each(1.0),
    inner: Literal["ties", "dare_ties", "dare_linear", "task_arithmetic"] = "ties",
    lambda_: float = 1.0,
) -> Tensor:
    """Decompose the task vectors side by side, [τ₁ … τ_T] = UΣ[V₁ … V_T], merge the Vₜ by `inner`, and put UΣ before.

    Formula: θ = θ₀ + λ UΣ · inner(V₁ᵀ, …, V_Nᵀ), with [τ₁ … τ_N] = UΣ[V₁ᵀ … V_Nᵀ] and inner the weighted merge that
    `inner` names.

    TIES keeps each model's largest entries (`density` of those in the rank), DARE drops entries at random (the same
    ones in every expert of a stack) and scales up the rest; weights and sign election are those of `ties`. Rows are
    taken to be outputs. Vectors and other tensors that are no matrices: the weighted mean.

    Use it for LoRA skills that `ties` merges badly since their entries do not line up; the decomposition of all of them
    side by side takes time, and it is no help where task vectors share no directions.

    Paper: https://arxiv.org/abs/2410.19735
    """
    return each_matrix(
        task_vectors,
        lambda matrices: _merged(matrices, noise, weight, density, inner),
        lambda tensors: mean(column(weight, tensors) * tensors),
    ).mul_(lambda_)


def _merged(matrices: Tensor, noise: Noise, weight: Sequence[float], density: Sequence[float], inner: str) -> Tensor:
    models, rows, columns = matrices.shape
    u, s, vh = signed(decompose(matrices.transpose(0, 1).reshape(rows, models * columns)))
    aligned = vh.reshape(len(s), models, columns).transpose(0, 1)
    if inner == "ties":
        aligned = _trimmed(aligned, (s > 0).sum() * columns, density)
    elif inner != "task_arithmetic":
        kept = column(density, aligned)
        aligned = aligned * (noise.uniform(aligned) < kept) / kept
    scale = column(weight, aligned)
    return (u * s) @ (_agreed(aligned, scale) if inner.endswith("ties") else total(aligned * scale))


def _trimmed(aligned: Tensor, count: Tensor, density: Sequence[float]) -> Tensor:
    """Each model's largest entries: its share of `count`, which leaves out the rows beyond the rank."""
    trimmed = aligned.clone()
    for values, share in zip(trimmed, density, strict=True):
        if share < 1:
            ordered = values.abs().flatten().sort(descending=True).values
            last = (count * share + 1e-9).floor().long().clamp(min=1).reshape(1) - 1
            values *= values.abs() >= ordered.gather(0, last)
    return trimmed


def _agreed(aligned: Tensor, scale: Tensor) -> Tensor:
    """The weighted mean of the entries that have the sign of the sum."""
    elected = sign_of(total(aligned))
    agreeing = (aligned * elected).clamp(min=0)
    mass = total(torch.sign(agreeing) * scale)
    return total(agreeing * scale) * elected * reciprocal(mass)
