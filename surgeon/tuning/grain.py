"""Coefficients that are free to be learned: one a model, a layer, a tensor or an output row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from surgeon.anatomy.describe import Anatomy
from surgeon.anatomy.family import Role
from surgeon.anatomy.stacks import positions
from surgeon.artifacts.coefficients import Coefficients, coefficients

Grain = Literal["model", "layer", "tensor", "row"]
GRAINS: tuple[Grain, ...] = get_args(Grain)


@dataclass(frozen=True, eq=False)
class Free:
    """The leaves that are learned, by group, and which group each tensor is of."""

    grain: Grain
    leaves: Mapping[str, Tensor]
    groups: Mapping[str, str]

    def of(self, tensor: str) -> Tensor:
        """The coefficients of a tensor: [models], or [models, *shape] with axes of length 1."""
        return self.leaves[self.groups[tensor]]

    @property
    def count(self) -> int:
        """How many numbers are learned."""
        return sum(leaf.numel() for leaf in self.leaves.values())

    def artifact(self, models: Sequence[str], **about: object) -> Coefficients:
        """Them as a file's content, tensor by tensor."""
        return coefficients({name: self.of(name) for name in self.groups}, models, per=self.grain, **about)


def free(
    grain: Grain, shapes: Mapping[str, tuple[int, ...]], anatomy: Anatomy, start: Sequence[float], device: torch.device
) -> Free:
    """Coefficients for tensors of these shapes, all at the start's weights."""
    groups = dict(zip(shapes, _groups(grain, shapes), strict=True))
    leaves: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        own = output_rows(shape, name, anatomy) if grain == "row" else ()
        if groups[name] not in leaves:
            begun = torch.tensor(start, device=device).reshape(-1, *[1] * len(own)).expand(-1, *own)
            leaves[groups[name]] = begun.clone().requires_grad_()
    return Free(grain, leaves, groups)


def _groups(grain: Grain, names: Mapping[str, object]) -> list[str]:
    if grain == "model":
        return [""] * len(names)
    if grain != "layer":
        return list(names)
    known = positions(names)
    return [f"{known[name].place} {known[name].index}" if name in known else name for name in names]


def output_rows(shape: tuple[int, ...], name: str, anatomy: Anatomy) -> tuple[int, ...]:
    """The shape of a coefficient an output: the tensor's, with 1 along the axis it sums over.

    A writer of the residual stream sums over the axis beside the residual one, a reader over the residual one. What the
    family's table says nothing of, or that is a matrix inside, has one number.
    """
    place = anatomy.places.get(name)
    if len(shape) < 2:
        return shape
    if place is None or place.role is Role.INSIDE:
        return ()
    summed = place.axis if place.role is not Role.WRITES_RESIDUAL else -3 - place.axis
    return tuple(1 if axis == len(shape) + summed else length for axis, length in enumerate(shape))
