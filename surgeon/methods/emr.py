"""EMR's unified task vector: the elected sign with the largest magnitude that has it."""

import torch
from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.numeric import sign_of, total
from surgeon.space.parameters import TaskVectors


@merge_method(blocks="elements")
def emr(task_vectors: TaskVectors, lambda_: float = 1.0) -> Tensor:
    """Elect a sign for every entry and take the largest magnitude among the task vectors that have it.

    Formula: θ = θ₀ + λ γ ⊙ maxᵢ max(0, γ ⊙ τᵢ), γ = sign Σ τᵢ (+ where the sum is 0).

    Of the paper's three parts (elect, mask, rescale) this is the one that makes a single checkpoint; its masks and
    scales, one a task, need a server that chooses the task.

    Use it when every model should keep its largest changes; all models answer at once in full size, so that many need a
    `lambda` below 1; without the masks the paper's figures do not hold.

    Paper: https://arxiv.org/abs/2405.17461
    """
    elected = sign_of(total(task_vectors))
    agreeing = (task_vectors * elected).relu_()
    unified = agreeing[0]
    for magnitude in agreeing[1:]:
        unified = torch.maximum(unified, magnitude)
    return unified.mul_(elected).mul_(lambda_)
