"""Ablation: what is written along a subspace is removed, weakened, reflected or strengthened."""

from torch import Tensor

from surgeon.space.edit import coordinates, edit
from surgeon.space.parameters import Subspace, Weight


@edit(blocks="rows", linear=True, unchanged={"strength": 0}, removes={"strength": 1})
def ablate(weight: Weight, direction: Subspace, strength: float = 1.0, inside: Tensor = coordinates()) -> Tensor:
    """W − strength · R RᵀW: 1 removes what is written along R, 2 reflects it, a negative strength strengthens it.

    Paper: https://arxiv.org/abs/2406.11717 (strength 1, one direction, no output norms)
    """
    return weight - strength * (direction @ inside)
