"""Spherical interpolation of any number of models."""

from typing import Literal

import numpy as np
from torch import Tensor

from surgeon.space.geometry import Points, combined
from surgeon.space.method import merge_method
from surgeon.space.parameters import PerModel, Vectors
from surgeon.space.statistics import Products, inner_products


@merge_method(
    blocks="elements",
    ranges={"eps": "[0, inf)"},
    mergekit={
        "tangent": (
            "projection",
            "tangents are projections, whose weighted sum is zero: the mean direction is left",
        ),
        "opposite": ("linear", "two opposite tensors are added up; here they are refused"),
    },
)
def multislerp(
    vectors: Vectors,
    weight: PerModel[float],
    normalize_weights: bool = True,
    eps: float = 1e-8,
    tangent: Literal["logarithm", "projection"] = "logarithm",
    opposite: Literal["refuse", "linear"] = "refuse",
    products: Products = inner_products(),
) -> Tensor:
    """Average directions on the sphere and lengths along the line, by weights; with a base, those of task vectors.

    Formula: θ = (Σ wᵢ‖vᵢ‖) expₘ(Σ wᵢ logₘ(uᵢ)), uᵢ = vᵢ/‖vᵢ‖, m = Σ wᵢuᵢ / ‖Σ wᵢuᵢ‖; weights are made to sum to 1, vᵢ
    is θᵢ, or with a base τᵢ and θ₀ is added.

    Each tensor is one vector. Two models give the arc between them, as `nuslerp` does; `karcher` repeats the step until
    none is left. `normalize_weights: false` scales the result by the sum of the weights. Opposite directions are
    refused, or added up with `opposite: linear`. `tangent: projection` is mergekit's: it projects where the logarithm
    belongs, which gives m itself, of vectors whose lengths are raised by `eps`.

    Use it with a base for several fine-tunes whose mean should keep the length of their task vectors, which plain
    averages shorten; it does not sort out entries that disagree.

    Paper: none; the method is mergekit's.
    """
    mass = sum(weight)
    if not mass:
        raise ValueError(f"the weights {', '.join(f'{each:g}' for each in weight)} cancel; multislerp divides by them")
    share = np.array(weight) / mass
    scale = 1.0 if normalize_weights or len(weight) == 1 else mass
    points, lengths = Points.of(products)
    shown = share * (lengths > 0)
    if not shown.any():
        return combined((scale * share).tolist(), vectors)
    try:
        if tangent == "projection":
            mean = points.chord(shown * lengths / (lengths + eps))
        else:
            shown = shown / shown.sum()
            start = points.chord(shown)
            mean = points.walk(start, points.tangent(shown, start))
    except ValueError:
        if opposite == "refuse":
            raise
        return combined((scale * share).tolist(), vectors)
    length = scale * float((share * lengths).sum())
    return combined((length * mean / np.where(lengths > 0, lengths, 1.0)).tolist(), vectors)
