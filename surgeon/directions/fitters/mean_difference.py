"""The difference of two means: the direction a linear edit moves best along."""

from typing import Literal

import torch
from torch import Tensor

from surgeon.errors import RefusedError
from surgeon.space.fitter import Moments, fitter


@fitter
def mean_difference(
    positive: Moments, negative: Moments, neutral: Moments | None, project: Literal["none", "neutral"] = "none"
) -> Tensor:
    """Mean of the positive states minus mean of the negative ones; `project: neutral` takes the neutral mean out.

    Paper: https://arxiv.org/abs/2310.06824 (mass-mean probe)
    """
    row = positive.mean - negative.mean
    if project == "neutral":
        if neutral is None:
            raise RefusedError("mean_difference: project: neutral needs a neutral set", hint="name one with `neutral:`")
        unit = torch.nn.functional.normalize(neutral.mean, dim=0)
        for _ in range(2):  # a second pass takes what rounding left of the first
            row = row - (row @ unit) * unit
    return torch.nn.functional.normalize(row, dim=0)
