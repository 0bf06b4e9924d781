"""Fisher information, its diagonal: how much each weight matters to what a model says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from surgeon.artifacts.per_tensor import PerTensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Fisher(PerTensor):
    """E[(∂ log p / ∂θ)²] over the tokens a model answers with, each entry of a tensor's own shape.

    `about["tokens"]` is how many tokens the mean is taken over.
    """

    kind: ClassVar[str] = "fisher"
    aligned: ClassVar[bool] = True

    @override
    @classmethod
    def example(cls, shape: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
        import torch

        return torch.rand(shape, generator=generator) + 0.1

    @override
    def fault(self, tensor: str, shape: tuple[int, ...]) -> str | None:
        place = self.place(tensor)
        assert place is not None
        found = self.stored[place.entry].spec.shape
        return None if found == shape else f"is {list(found)} and the tensor {list(shape)}"
