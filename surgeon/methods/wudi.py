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

    Paper: https://arxiv.org/abs/2503.08099, which takes Σ ‖(M − τ)τᵀ‖²/‖τ‖² down by 300 steps of Adam from Σ τ.
    The loss is quadratic. `closed` is its minimum of least norm, KH⁺ with H = Σ τᵀτ/‖τ‖² and K = Σ τ(τᵀτ)/‖τ‖².
    `descent` is what that many steps of gradient descent from Σ τ come to, at the largest stable step 1/λ₁, written in
    the eigenvectors of H: (1 − λ/λ₁)^steps of the sum is left along each. Adam depends on the basis, this does not.
    `descent` is the default: stopping early leaves weak directions near the sum, where the minimum averages
    (https://huggingface.co/papers/2606.07289 finds the minimum the worse of the two). Rows are taken to be outputs.
    Vectors and other tensors that are no matrices: the mean.
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
