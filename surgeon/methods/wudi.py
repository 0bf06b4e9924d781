"""WUDI: the matrix that interferes least with every task vector."""

from typing import Literal

import torch
from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.numeric import column, total
from surgeon.space.parameters import PerModel, TaskVectors, each
from surgeon.space.spectral import decompose, each_matrix, reciprocal


@merge_method(equivariant="both", ranges={"steps": "[0, inf)"})
def wudi(
    task_vectors: TaskVectors,
    weight: PerModel[float] = each(1.0),
    solver: Literal["descent", "closed"] = "descent",
    steps: int = 300,
    lambda_: float = 1.0,
) -> Tensor:
    """Find the M that differs least from every task vector τ along the inputs that τ itself reads.

    Formula: θ = θ₀ + λM, M from minimising Σ ‖(M − τᵢ)τᵢᵀ‖² / ‖τᵢ‖² over wᵢτᵢ in place of τᵢ. `closed`: M = KH⁺ with H
    = Σ τᵢᵀτᵢ/‖τᵢ‖², K = Σ τᵢ(τᵢᵀτᵢ)/‖τᵢ‖². `descent`: M = KH⁺ + (Σ τᵢ − KH⁺)(I − H/λ₁)^steps, λ₁ the largest eigenvalue
    of H.

    `descent`, the default, is what that many steps of gradient descent from Σ τᵢ come to, at the largest stable step
    1/λ₁; the paper takes 300 steps of Adam, which depend on the basis. Stopping early leaves weak directions near the
    sum, where the minimum averages (https://huggingface.co/papers/2606.07289 finds the minimum the worse of the two).
    Rows are taken to be outputs. Vectors and other tensors that are no matrices: the mean.

    Use it for several tasks without data: the rows of a task vector are taken for what its task reads, which `regmean`
    measures; `closed` behaves like an average on directions that models share.

    Paper: https://arxiv.org/abs/2503.08099
    """
    left = float(steps) if solver == "descent" else None
    weighted = column(weight, task_vectors) * task_vectors
    return each_matrix(weighted, lambda matrices: _merged(matrices, left)).mul_(lambda_)


def _merged(matrices: Tensor, steps: float | None) -> Tensor:
    matrices = matrices.double()
    units = matrices * reciprocal(torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True))
    # H = Vs²Vᵀ, from the task vectors one below the other.
    _, s, vh = decompose(units.flatten(0, 1))
    cubes = torch.stack([_cube(*pair) for pair in zip(matrices, units, strict=True)])
    minimum = (total(cubes) @ vh.T) * reciprocal(s * s)
    if steps is None:
        return minimum @ vh
    share = (s * reciprocal(s[:1])).square()
    start = total(matrices) @ vh.T
    return (minimum + (start - minimum) * (1 - share).pow(steps)) @ vh


def _cube(matrix: Tensor, unit: Tensor) -> Tensor:
    """ττᵀτ/‖τ‖², by way of the smaller product."""
    wide = matrix.shape[0] <= matrix.shape[1]
    return (matrix @ unit.T) @ unit if wide else matrix @ (unit.T @ unit)
