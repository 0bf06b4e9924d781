"""Spherical interpolation of two models by weights, of tensors, rows or columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from typing_extensions import override

from surgeon.space.geometry import ColumnProducts, Vector, arc, combined, gram
from surgeon.space.method import merge_method
from surgeon.space.parameters import PerModel, Vectors
from surgeon.space.statistics import Products, inner_products


def _along(flatten: bool, row_wise: bool, row_wise_means: str) -> Vector:
    """What is one vector."""
    if flatten:
        return "tensor"
    return "rows" if row_wise == (row_wise_means == "rows") else "columns"


@dataclass(frozen=True)
class _Columns(ColumnProducts):
    """Inner products of columns, where columns are the vectors."""

    @override
    def needed(self, settings: Mapping[str, Any]) -> bool:
        given = (settings[name] for name in ("nuslerp_flatten", "nuslerp_row_wise", "row_wise_means"))
        return _along(*given) == "columns"


_COLUMNS: Any = _Columns()


@merge_method(
    blocks="rows",
    models=(2, 2),
    mergekit={
        "row_wise_means": ("columns", "nuslerp_row_wise: true takes columns for vectors, and false rows"),
        "opposite": ("linear", "opposite vectors are interpolated along the line, not refused"),
        "cancelling": ("half", "weights that sum to zero count as equal ones, and are not refused"),
    },
)
def nuslerp(
    vectors: Vectors,
    weight: PerModel[float],
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
    row_wise_means: Literal["rows", "columns"] = "rows",
    opposite: Literal["refuse", "linear"] = "refuse",
    cancelling: Literal["refuse", "half"] = "refuse",
    products: Products = inner_products(),
    columns: Tensor | None = _COLUMNS,
) -> Tensor:
    """Move between two models along the arc between them, to where their weights' ratio says: t = w₂ / (w₁ + w₂).

    Formula: v = (sin((1 − t)Ω) v₁ + sin(tΩ) v₂) / sin Ω, t = w₂ / (w₁ + w₂), Ω the angle between v₁ and v₂; vᵢ is θᵢ
    and the result v, or with a base vᵢ is τᵢ and the result θ₀ + v. Colinear vectors: (1 − t) v₁ + t v₂.

    Each tensor is one vector; with `nuslerp_flatten: false` each of its rows is (runs along the last axis) if
    `nuslerp_row_wise`, else each of its columns. mergekit has the two names the other way round, which `row_wise_means:
    columns` follows. Opposite vectors and weights that cancel are refused, unless `opposite: linear` (along the line)
    or `cancelling: half` (t = 1/2) is given.

    Use it with a base to blend two fine-tunes without the loss of length that a mean of orthogonal task vectors has; it
    takes no third model, and where both change an entry it does not choose.

    Paper: https://doi.org/10.1145/325334.325242 (the arc)
    """
    mass = sum(weight)
    if abs(mass) < 1e-6 and cancelling == "refuse":
        raise ValueError(f"the weights {weight[0]:g} and {weight[1]:g} cancel; nuslerp needs their ratio to the sum")
    t = weight[1] / mass if abs(mass) >= 1e-6 else 0.5
    along = _along(nuslerp_flatten, nuslerp_row_wise, row_wise_means)
    return combined(arc(gram(vectors, products, along, columns), t, opposite=opposite), vectors)
