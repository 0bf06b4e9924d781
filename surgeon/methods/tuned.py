"""Task arithmetic with coefficients out of a file: one a tensor or one an output row."""

from torch import Tensor

from surgeon.artifacts.coefficients import Coefficients
from surgeon.space.method import merge_method
from surgeon.space.numeric import total
from surgeon.space.parameters import TaskVectors


@merge_method(blocks="rows", breaks={"model_order": "the coefficients are in the order of the models they belong to"})
def tuned(task_vectors: TaskVectors, coefficients: Coefficients) -> Tensor:
    """Add the task vectors, each tensor or output row times a coefficient of its own, as `surgeon tune` learned them.

    Formula: θ = θ₀ + Σ cᵢ ⊙ τᵢ, with cᵢ one number a tensor or one an output row.

    The order above is that of tensors in hand; a recipe's models are told by their names. Coefficients a task vector
    and layer, learned on data, are the paper's.

    Use it when about 200 prompts of each skill and some minutes are at hand: learned coefficients keep most of
    different skills at little cost elsewhere, and no more than the prompts show.

    Paper: https://arxiv.org/abs/2310.02575
    """
    return total(coefficients.over(task_vectors) * task_vectors)
