"""Task arithmetic with coefficients out of a file: one a tensor or one an output row."""

from torch import Tensor

from surgeon.artifacts.coefficients import Coefficients
from surgeon.space.method import merge_method
from surgeon.space.numeric import total
from surgeon.space.parameters import TaskVectors


@merge_method(blocks="rows", breaks={"model_order": "the coefficients are in the order of the models they belong to"})
def tuned(task_vectors: TaskVectors, coefficients: Coefficients) -> Tensor:
    """Add the task vectors, each tensor or output row times a coefficient of its own, as `surgeon tune` learned them.

    Formula: θ = θ₀ + Σ cᵢ ⊙ τᵢ, cᵢ a number a tensor or a vector over its output rows, out of the file.

    Use it through `surgeon tune`, with about 100 prompts a skill: it learns the file by distilling each model on its
    own prompts, with the base as guard on neutral ones. The models are told by the names that the recipe gives them.

    Paper: https://arxiv.org/abs/2310.02575 (coefficients a task vector and layer, learned on data)
    """
    return total(coefficients.over(task_vectors) * task_vectors)
