"""Coefficients of plain arithmetic: what each model's task vector is multiplied by, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from surgeon.artifacts.banded import Banded
from surgeon.errors import MismatchError, RefusedError, nearest


@dataclass(frozen=True, eq=False)
class Coefficients(Banded):
    """By the name of a tensor on disk, float32 [models] (one number a model) or [models, *shape] with axes of length 1.

    Axes of length 1 stretch: [models, rows, 1] is a number an output row of a matrix stored [out, in], [models, 1, out]
    of one stored [in, out]. `about` has ``models``, the names that recipes give the models, in the order of the first
    axis.
    """

    kind: ClassVar[str] = "coefficients"

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models, in the order of the first axis."""
        return tuple(self.about.get("models", ()))

    @override
    def misfit(self, tensor: str, shape: Sequence[int], labels: Sequence[str]) -> MismatchError | None:
        if sorted(labels) != sorted(self.models) or len(set(labels)) < len(labels):
            message = f"the coefficients are of {', '.join(self.models) or 'no model'}, not of {', '.join(labels)}"
            return MismatchError(message, hint="name the models in the recipe as they were named when tuned")
        if tensor not in self.tensors:
            return MismatchError(f"the coefficients hold nothing for {tensor}", hint=nearest(tensor, self.tensors))
        held = self.tensors[tensor]
        fits = held.ndim == 1 or [1 if own == 1 else n for own, n in zip(held.shape[1:], shape, strict=False)] == [
            *held.shape[1:]
        ]
        if held.shape[0] != len(labels) or not fits or held.ndim not in (1, 1 + len(shape)):
            message = f"the coefficients of {tensor} are {list(held.shape)}, and the tensor {list(shape)}"
            hint = (
                f"[{len(labels)}] or [{len(labels)}, …] with an axis of the tensor's length or 1 for each of its axes"
            )
            return MismatchError(message, hint=hint)
        return None if held.isfinite().all() else MismatchError(f"the coefficients of {tensor} hold NaN or infinity")

    @override
    def at(self, tensor: str, shape: Sequence[int], rows: slice, labels: Sequence[str]) -> Coefficients:
        """Those of one band of rows of one tensor, the models in this order."""
        order = [self.models.index(label) for label in labels]
        band = _band(self.tensors[tensor][order], tuple(shape), rows)
        return Coefficients({tensor: band}, {"models": list(labels)})

    def over(self, stack: Tensor) -> Tensor:
        """Where they are of one tensor: as a tensor that multiplies [model, …], the tensor or a band of its rows."""
        if len(self.tensors) != 1:
            raise RefusedError(f"coefficients of {len(self.tensors)} tensors; those of one are needed here")
        (held,) = self.tensors.values()
        held = held.reshape(len(held), *held.shape[1:], *[1] * (stack.ndim - held.ndim))
        return held.to(device=stack.device, dtype=stack.dtype)

    @override
    @classmethod
    def sample(cls, labels: Sequence[str], tensor: str, shape: Sequence[int]) -> Coefficients:
        numbers = torch.tensor([1 - 0.1 * index for index in range(len(labels))]).reshape(-1, *[1] * len(shape))
        return coefficients({tensor: numbers.expand(-1, shape[0], *[1] * (len(shape) - 1))}, labels)


def coefficients(tensors: Mapping[str, Tensor], models: Sequence[str], **about: object) -> Coefficients:
    """Coefficients in hand, by tensor, [models] or [models, …] each; `about` is whatever else should be remembered."""
    held = {
        name: value.detach().float().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    return Coefficients(held, {"models": list(models), **about})


def _band(held: Tensor, shape: tuple[int, ...], rows: slice) -> Tensor:
    """Coefficients [models, …] as [models, 1 or rows, 1 or columns] (of a vector [models, 1 or elements])."""
    if held.ndim == 1 or len(shape) < 2:
        flat = held.reshape(len(held), -1)
        flat = flat if flat.shape[1] == 1 else flat[:, rows]
        return flat if len(shape) < 2 else flat.unsqueeze(-1)
    if all(length == 1 for length in held.shape[1:-1]):
        return held.reshape(len(held), 1, held.shape[-1])
    wide = held.expand(-1, *shape[:-1], held.shape[-1])
    return wide.reshape(len(held), -1, held.shape[-1])[:, rows]
