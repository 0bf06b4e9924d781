"""Model Stock: how far from the base to go, by the angle between fine-tunes."""

from fractions import Fraction

import torch
from torch import Tensor

from surgeon.space.geometry import cosines, gram
from surgeon.space.method import merge_method
from surgeon.space.numeric import total
from surgeon.space.parameters import TaskVectors
from surgeon.space.statistics import Products, inner_products


@merge_method(
    blocks="rows",
    models=(2, None),
    ranges={"floor": "[0, inf)"},
    mergekit={
        "clamp": (False, "t may leave 0 to 1 where task vectors point away from each other"),
        "floor": (
            Fraction(1, 10**6),
            "task vectors whose lengths' product is below 1e-6 count as nearer to orthogonal",
        ),
    },
)
def model_stock(
    task_vectors: TaskVectors,
    filter_wise: bool = False,
    clamp: bool = True,
    floor: float = 0.0,
    products: Products = inner_products(),
) -> Tensor:
    """Go t = N c / (1 + (N − 1) c) of the way from the base to the mean of N models, c their mean pairwise cosine.

    Formula: θ = θ₀ + t · (Σ τᵢ)/N, t = N c / (1 + (N − 1) c), c the mean of cos(τᵢ, τⱼ) over pairs i < j.

    Per tensor, or with `filter_wise` per row (a run along the last axis). `clamp` keeps t within 0 and 1, `floor`
    bounds the products of lengths in the cosines from below.

    Use it for fine-tunes of one task by different seeds (c around 0.5); fine-tunes of different tasks are nearly
    orthogonal, and then the result is nearly the base: take another method for them.

    Paper: https://arxiv.org/abs/2403.19522
    """
    count = len(task_vectors)
    table = cosines(gram(task_vectors, products, "rows" if filter_wise else "tensor"), floor)
    pairs = torch.stack([table[i, j] for i in range(count) for j in range(i + 1, count)])
    cosine = total(pairs) / len(pairs)
    below = 1 + (count - 1) * cosine
    singular = below.abs() < 1e-6
    t = torch.where(singular, 0.0, count * cosine / torch.where(singular, 1.0, below))
    if clamp:
        t = t.clamp(0, 1)
    return total(task_vectors) * (t / count).to(task_vectors.dtype)
