"""Spherical interpolation."""

import math

from torch import Tensor

from surgeon.space.method import merge_method
from surgeon.space.parameters import Base, Models
from surgeon.space.statistics import Products, inner_products

# Closer than this the arc is a chord; the figure is the one merging tools share.
_COLINEAR = 0.9995


@merge_method(
    blocks="elements",
    models=(1, 1),
    ranges={"t": "[0, 1]"},
    breaks={"one_model": "t moves between two models"},
)
def slerp(base: Base, models: Models, t: float, products: Products = inner_products()) -> Tensor:
    """Move from the base (t = 0) to the model (t = 1) along the arc between them, each tensor as one vector.

    Formula: θ = (sin((1 − t)Ω) θ₀ + sin(tΩ) θ₁) / sin Ω, Ω the angle between θ₀ and θ₁; θ₀ + t (θ₁ − θ₀) where cos Ω >
    0.9995.

    Nearly colinear tensors are interpolated linearly, so equal models give exactly themselves; opposite ones have no
    arc between them and are refused.

    Use it for two models whose weights point in clearly different directions; a fine-tune and its base are nearly
    colinear, and then it is plain interpolation (`nuslerp` with a base works on task vectors).

    Paper: https://doi.org/10.1145/325334.325242
    """
    if t in (0, 1):
        return models[0].clone() if t else base.clone()
    first, second = (math.sqrt(products[i][i]) for i in (0, 1))
    cosine = products[0][1] / ((first if first > 1e-8 else 1.0) * (second if second > 1e-8 else 1.0))
    other = models[0]
    if cosine < -_COLINEAR:
        raise ValueError("base and model point in opposite directions: there is no arc between them")
    if cosine > _COLINEAR:
        return base + t * (other - base)
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * base + math.sin(t * angle) * other) / math.sin(angle)
