"""TIES: trim, elect signs, merge what agrees."""

from typing import Literal

import torch
from torch import Tensor

from surgeon.space.magnitude import Cut, kth_magnitude
from surgeon.space.method import merge_method
from surgeon.space.numeric import column, sign_of, total
from surgeon.space.parameters import PerModel, TaskVectors, each


@merge_method(
    blocks="elements",
    ranges={"density": "(0, 1]"},
    mergekit={
        "elect": ("weighted", "signs are elected by weighted task vectors, the paper's by trimmed ones alone"),
        "over": ("tensor", ""),
    },
)
def ties(
    task_vectors: TaskVectors,
    weight: PerModel[float] = each(1.0),
    density: PerModel[float] = each(1.0),
    normalize: bool = True,
    lambda_: float = 1.0,
    elect: Literal["trimmed", "weighted"] = "trimmed",
    over: Literal["tensor", "model"] = "tensor",
    cut: Cut = kth_magnitude("density"),
) -> Tensor:
    """Keep each task vector's largest entries, elect a sign for every entry, average the values that agree with it.

    Paper: https://arxiv.org/abs/2306.01708. The sign of a zero sum is +. `elect: weighted` weighs the votes too, as
    mergekit does; `over: model` trims over the whole model, as the paper's code does. `normalize: false` sums.
    """
    trimmed = cut.trim(task_vectors)
    scale = column(weight, trimmed)
    votes = trimmed * scale if elect == "weighted" else trimmed
    elected = sign_of(total(votes))
    agreeing = votes.mul_(elected).relu_()
    mass = total(torch.sign(agreeing).mul_(scale)) if normalize else None
    merged = total(agreeing if elect == "weighted" else agreeing.mul_(scale)).mul_(elected)
    if mass is not None:
        merged /= mass.add_(1 - torch.sign(mass).abs_())
    return merged.mul_(lambda_)
