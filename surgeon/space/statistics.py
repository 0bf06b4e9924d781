"""What a method must know of a whole tensor before any block of it can be computed.

A statistic is frozen data that describes a reduction in rounds: each round looks at blocks, each block gives a
*partial*, and the partials give what the next round needs. Blocks start at multiples of `numeric.CHUNK`; the result
does not depend on how long they are. Called on plain tensors, the whole tensor is one block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from surgeon.space.numeric import chunk_sums, tree_sum

Place = tuple[int, int]
"""A block: number of its tensor (0 unless the statistic spans the model) and flat index of its first element."""


@dataclass(frozen=True)
class Statistic(ABC):
    """A reduction over blocks of a method's operand, [model, n] float32."""

    @property
    @abstractmethod
    def rounds(self) -> int:
        """How often the blocks are looked at."""

    def over(self, settings: Mapping[str, Any]) -> str:
        """``tensor``, or ``model`` when one result holds for every tensor of the model."""
        return "tensor"

    @property
    def reads(self) -> int:
        """About how often all values are looked at in all rounds."""
        return self.rounds

    def wanted(self, known: Any, place: Place, count: int) -> int:
        """How many elements, from its start, the next round needs of the block at this place, of `count` elements."""
        return count

    def scratch(self, models: int, count: int, block: int, tensors: int = 1) -> int:
        """Bytes it needs at most beside the operand, for `count` elements in so many tensors, in blocks of `block`."""
        return 16 * models * block

    @abstractmethod
    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> Any:
        """What is known before the first round; `count` is the number of elements a model has."""

    @abstractmethod
    def observe(self, known: Any, values: Tensor, place: Place) -> Any:
        """The partial of one block: [model, n], or of a method that works on rows [model, rows, columns]."""

    def collect(self, known: Any, partials: dict[Any, Any], place: Place, partial: Any) -> None:
        """Add a block's partial to those collected; order must not matter."""
        partials[place] = partial

    @abstractmethod
    def conclude(self, known: Any, partials: Mapping[Any, Any]) -> Any:
        """What is known after a round."""

    @abstractmethod
    def at(self, known: Any, place: Place) -> Any:
        """The argument the method's function gets for the block at a place."""

    def of(self, values: Tensor, settings: Mapping[str, Any]) -> Any:
        """The argument for a whole tensor in hand: [model, …]."""
        flat = values.reshape(values.shape[0], -1)
        known = self.begin(flat.shape[0], flat.shape[1], settings)
        if flat.device.type != "meta":
            for _ in range(self.rounds):
                seen: dict[Any, Any] = {}
                wanted = self.wanted(known, (0, 0), flat.shape[1])
                if wanted:
                    self.collect(known, seen, (0, 0), self.observe(known, flat[:, :wanted], (0, 0)))
                known = self.conclude(known, seen)
        return self.at(known, (0, 0))


@dataclass(frozen=True)
class InnerProducts(Statistic):
    """All inner products of the models, over the whole tensor, in float64 by a fixed tree."""

    @property
    @override
    def rounds(self) -> int:
        return 1

    @override
    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(float(i == j) for j in range(models)) for i in range(models))

    @override
    def observe(self, known: Any, values: Tensor, place: Place) -> dict[tuple[int, int], np.ndarray]:
        wide = values.reshape(len(values), -1).double()
        pairs = [(i, j) for i in range(len(wide)) for j in range(i, len(wide))]
        return {(i, j): chunk_sums(wide[i] * wide[j]).cpu().numpy() for i, j in pairs}

    @override
    def conclude(self, known: Any, partials: Mapping[Place, dict[tuple[int, int], np.ndarray]]) -> Any:
        ordered = [seen for _, seen in sorted(partials.items())]
        models = len(known)
        sums = {
            pair: tree_sum(torch.from_numpy(np.concatenate([seen[pair] for seen in ordered]))) for pair in ordered[0]
        }
        return tuple(tuple(sums[min(i, j), max(i, j)] for j in range(models)) for i in range(models))

    @override
    def at(self, known: Any, place: Place) -> Sequence[Sequence[float]]:
        return known


def inner_products() -> Any:
    """The default of a `Products` argument: a symmetric table of numbers, [model][model]."""
    return InnerProducts()


Products = Sequence[Sequence[float]]
