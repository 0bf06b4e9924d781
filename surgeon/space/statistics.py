"""What a method must know of a whole tensor before any block of it can be computed.

A statistic is frozen data that describes a reduction in rounds: each round looks at blocks, each block gives a
*partial*, and the partials give what the next round needs. Blocks start at multiples of `numeric.CHUNK`; the result
does not depend on how long they are. Called on plain tensors, the whole tensor is one block.

A statistic looks at the method's operand, or at a *view* of it: a plain function of some of the method's own arguments,
by name, among them statistics declared before it. So one rests on another: norms of what a threshold leaves.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from surgeon.space.leaves import Leaves, Place
from surgeon.space.numeric import CHUNK, chunk_sums, row_sums, tree_sum

#: Elements that are widened to float64 at once; they stay in the processor's cache.
_WINDOW = 32 * CHUNK


@dataclass(frozen=True)
class Statistic(ABC):
    """A reduction over blocks of a method's operand, [model, n] float32, or of a `view`, [row, n].

    `when` names the settings (argument, value) without which nothing asks for it: then no block is looked at.
    """

    view: Callable[..., Tensor] | None = field(default=None, kw_only=True)
    when: tuple[tuple[str, Any], ...] = field(default=(), kw_only=True)

    def active(self, settings: Mapping[str, Any]) -> bool:
        """Whether these settings ask for it."""
        return all(settings[argument] == value for argument, value in self.when)

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
        """What is known before the first round; `count` is the number of elements a model has.

        It must be fit for `at` too: a dry run computes with it, and so does a merge whose settings do not ask for it.
        """

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

    def of(self, values: Tensor, settings: Mapping[str, Any], models: int | None = None) -> Any:
        """The argument for a whole tensor in hand, [row, …]; a view's rows are of so many `models`."""
        flat = values.reshape(values.shape[0], -1)
        known = self.begin(len(flat) if models is None else models, flat.shape[1], settings)
        if flat.device.type != "meta" and self.active(settings):
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
    def scratch(self, models: int, count: int, block: int, tensors: int = 1) -> int:
        pairs = models * (models + 1) // 2
        return 8 * (models + 2) * _WINDOW + 16 * pairs * (count // CHUNK + tensors)

    @override
    def observe(self, known: Any, values: Tensor, place: Place) -> Tensor:
        flat = values.reshape(len(values), -1)
        return torch.cat([self._window(flat[:, at : at + _WINDOW]) for at in range(0, flat.shape[1], _WINDOW)], 1)

    def _window(self, values: Tensor) -> Tensor:
        wide = values.double()
        return torch.stack([chunk_sums(wide[i] * wide[j]) for i, j in _pairs(len(wide))])

    @override
    def collect(self, known: Any, partials: dict[Any, Any], place: Place, partial: Tensor) -> None:
        Leaves.add(partials, place, partial)

    @override
    def conclude(self, known: Any, partials: Mapping[Any, Any]) -> Any:
        models = len(known)
        sums = {pair: tree_sum(row) for pair, row in zip(_pairs(models), Leaves.of(partials), strict=True)}
        return tuple(tuple(sums[min(i, j), max(i, j)] for j in range(models)) for i in range(models))

    @override
    def at(self, known: Any, place: Place) -> Sequence[Sequence[float]]:
        return known


def _pairs(models: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(models) for j in range(i, models)]


Table = Any
"""Numbers, nested as a statistic says: [model], [model][model] …"""


@dataclass(frozen=True, eq=False)
class Measured:
    """What a reduction knows: its numbers, and of how many elements a row."""

    numbers: np.ndarray
    count: int


@dataclass(frozen=True)
class Reduction(Statistic):
    """One number for each row of a view, in one look; `shape` nests them: a count, or 0 for the number of models."""

    shape: tuple[int, ...] = (0,)

    @property
    @override
    def rounds(self) -> int:
        return 1

    @override
    def scratch(self, models: int, count: int, block: int, tensors: int = 1) -> int:
        rows = math.prod(length or models for length in self.shape)
        return 24 * rows * block + 16 * rows * (count // CHUNK + tensors)

    @override
    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> Measured:
        shape = tuple(length or models for length in self.shape)
        return Measured(np.ones(shape), count)

    @override
    def at(self, known: Measured, place: Place) -> Table:
        return known.numbers.tolist()


@dataclass(frozen=True)
class Means(Reduction):
    """The mean of every row, by a fixed tree."""

    @override
    def observe(self, known: Measured, values: Tensor, place: Place) -> Tensor:
        return row_sums(values)

    @override
    def collect(self, known: Any, partials: dict[Any, Any], place: Place, partial: Tensor) -> None:
        Leaves.add(partials, place, partial)

    @override
    def conclude(self, known: Measured, partials: Mapping[Any, Any]) -> Measured:
        if not partials:
            return known
        sums = np.array([tree_sum(row) for row in Leaves.of(partials)]).reshape(known.numbers.shape)
        return Measured(sums / known.count, known.count)


@dataclass(frozen=True)
class Largest(Reduction):
    """The largest number of every row."""

    @override
    def observe(self, known: Measured, values: Tensor, place: Place) -> np.ndarray:
        return values.amax(dim=1).double().cpu().numpy()

    @override
    def conclude(self, known: Measured, partials: Mapping[Place, np.ndarray]) -> Measured:
        if not partials:
            return known
        return Measured(np.max(list(partials.values()), axis=0).reshape(known.numbers.shape), known.count)


def means(view: Callable[..., Tensor], *shape: int, **when: Any) -> Any:
    """The default of a `Table` argument: the means of a view's rows; `when` as in ``rescale=True``.

    `shape` nests them: a count, or 0 for the number of models; without it there is one for every model.
    """
    return Means(shape or (0,), view=view, when=tuple(when.items()))


def largest(view: Callable[..., Tensor], *shape: int) -> Any:
    """The default of a `Table` argument: the largest number in each of a view's rows, nested as in `means`."""
    return Largest(shape or (0,), view=view)


def inner_products() -> Any:
    """The default of a `Products` argument: a symmetric table of numbers, [model][model]."""
    return InnerProducts()


Products = Sequence[Sequence[float]]
