"""TIES: trim, elect signs, merge what agrees."""

from typing import Literal

import torch
from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.numeric import column, sign_of, total
from surgeon.space.parameters import PerModel, TaskVectors, each
from surgeon.space.statistics import Cut, kth_magnitude


@merge_method(blocks="elements", ranges={"density": "(0, 1]"})
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
    agreeing = torch.relu(votes * elected)
    merged = total(agreeing if elect == "weighted" else agreeing * scale) * elected
    if normalize:
        mass = total(torch.sign(agreeing) * scale)
        merged /= mass + (1 - torch.sign(mass.abs()))
    return merged * lambda_ if lambda_ != 1 else merged
