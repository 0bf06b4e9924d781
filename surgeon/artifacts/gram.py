"""Grams: the second moments of what each linear layer reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from surgeon.artifacts.per_tensor import PerTensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gram(PerTensor):
    """XᵀX/n of the n tokens that a linear layer reads, [in, in], for each matrix it multiplies them with.

    Layers that read the same share one entry. The place of a tensor says which of its axes is the input's: the last of
    torch's [out, in], the last but one of Conv1D's [in, out]. `about["tokens"]` is n; embeddings, norms, biases and
    convolutions have no entry.
    """

    kind: ClassVar[str] = "gram"

    @override
    @classmethod
    def example(cls, shape: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
        import torch

        if len(shape) != 2:
            return None
        read = torch.randn(2 * shape[1], shape[1], generator=generator)
        return read.T @ read / len(read)

    @override
    def fault(self, tensor: str, shape: tuple[int, ...]) -> str | None:
        place = self.place(tensor)
        assert place is not None
        found = self.stored[place.entry].spec.shape
        width = shape[place.axis] if len(shape) == 2 else None
        return None if found == (width, width) else f"is {list(found)}; a tensor {list(shape)} needs {[width, width]}"


@dataclass(frozen=True, eq=False)
class MergedGram(Gram):
    """Grams of one model's layers behind the merged blocks before them: they belong to one merge with its settings."""

    kind: ClassVar[str] = "merged_gram"
    joint: ClassVar[bool] = True
