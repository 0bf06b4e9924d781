"""The Karcher mean: the centre of models on a sphere."""

from fractions import Fraction
from typing import Literal

import numpy as np
from torch import Tensor

from surgeon.space.geometry import Points, combined
from surgeon.space.method import merge_method
from surgeon.space.parameters import Models, PerModel, each
from surgeon.space.statistics import Products, inner_products


@merge_method(
    blocks="elements",
    ranges={"weight": "[0, inf)", "max_iter": "[0, inf)", "tol": "[0, inf)"},
    mergekit={
        "weight": (Fraction(1), ""),
        "max_iter": (Fraction(10), "at most 10 steps are taken unless max_iter says otherwise, here 100"),
        "tol": (Fraction(1, 10**5), "steps end at a length of 1e-5 unless tol says otherwise, here 1e-12"),
        "opposite": ("refuse", "models that cancel are started from the first of them; here they are refused"),
    },
)
def karcher(
    models: Models,
    weight: PerModel[float] = each(1.0),
    max_iter: int = 100,
    tol: float = 1e-12,
    opposite: Literal["refuse", "linear"] = "refuse",
    products: Products = inner_products(),
) -> Tensor:
    """The point from which the arcs to all models, by their weights, cancel; its length is their mean length.

    Formula: θ = (Σ wᵢ‖θᵢ‖) m on the unit vector m where Σ wᵢ logₘ(θᵢ/‖θᵢ‖) = 0, by steps m ← expₘ(Σ wᵢ logₘ(θᵢ/‖θᵢ‖))
    from the mean direction; weights are made to sum to 1.

    Each tensor is one vector. Steps end when one is shorter than `tol`, or after `max_iter`. All of it happens in the
    inner products of the models. Two models of equal weight give the middle of their arc. Where models point in
    opposite directions there is no centre: refused, or with `opposite: linear` the plain mean.

    Use it for models that point in clearly different directions, whose plain mean would be too short; fine-tunes of one
    base are nearly colinear, and for them it is `linear`.

    Paper: https://arxiv.org/abs/2603.04972
    """
    share = np.array(weight) / (sum(weight) or 1.0)
    points, lengths = Points.of(products)
    shown = share * (lengths > 0)
    if not sum(weight):
        raise ValueError("all weights are zero: there is no mean")
    if not shown.any():
        return models[0].clone()
    try:
        mean = _mean(points, shown / shown.sum(), max_iter, tol)
    except ValueError:
        if opposite == "refuse":
            raise
        return combined(share.tolist(), models)
    length = float((share * lengths).sum())
    return combined((length * mean / np.where(lengths > 0, lengths, 1.0)).tolist(), models)


def _mean(points: Points, share: np.ndarray, max_iter: int, tol: float) -> np.ndarray:
    """Coefficients of the mean over the unit vectors."""
    mean = points.chord(share)
    for _ in range(max_iter):
        step = points.tangent(share, mean)
        if points.length(step) < tol:
            break
        mean = points.walk(mean, step)
    return mean
