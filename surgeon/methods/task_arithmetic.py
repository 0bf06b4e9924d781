"""Task arithmetic."""

from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.numeric import column, total
from surgeon.space.parameters import PerModel, TaskVectors, each


@merge_method(blocks="elements")
def task_arithmetic(
    task_vectors: TaskVectors, weight: PerModel[float] = each(1.0), normalize: bool = False, lambda_: float = 1.0
) -> Tensor:
    """Add the weighted task vectors; `normalize` divides by the sum of the weights, `lambda` scales the result.

    Formula: θ = θ₀ + λ Σ wᵢτᵢ, over Σ wᵢ with `normalize`.

    Use it first: with a weight that suits (0.3 to 0.6 for three or four models) a sum keeps most of several skills;
    where models change the same entries one may break another, and often no single weight serves all.

    Paper: https://arxiv.org/abs/2212.04089
    """
    mass = sum(weight) if normalize else 1.0
    scale = lambda_ / (mass if abs(mass) >= 1e-8 else 1.0)
    return total(column([w * scale for w in weight], task_vectors) * task_vectors)
