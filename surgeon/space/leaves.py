"""Numbers that blocks give before a tensor's are added up, kept in one array."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Place = tuple[int, int]
"""A block: number of its tensor (0 unless the statistic spans the model) and flat index of its first element."""


class Leaves:
    """Columns of float64 numbers, some of them from each block, in whatever order the blocks come.

    One array for all: an array for each block, made between blocks of some megabytes that are freed again, would leave
    the heap full of holes that no later block fits in (measured: 450 MB more for a tensor of 65 million elements).
    """

    def __init__(self, rows: int) -> None:
        self._held = np.empty((rows, 1024))
        self._places: list[tuple[Place, int, int]] = []
        self._count = 0

    @staticmethod
    def add(partials: dict[Any, Any], place: Place, numbers: Tensor) -> None:
        """Put a block's numbers, [rows, n], among those that `partials` hold."""
        if "leaves" not in partials:
            partials["leaves"] = Leaves(len(numbers))
        partials["leaves"]._put(place, numbers)

    @staticmethod
    def of(partials: Mapping[Any, Any]) -> Tensor:
        """All numbers in the order of the blocks, [rows, total]; the Leaves must be there."""
        leaves: Leaves = partials["leaves"]
        ordered = [leaves._held[:, start:stop] for _, start, stop in sorted(leaves._places)]
        return torch.from_numpy(np.concatenate(ordered, axis=1))

    def _put(self, place: Place, numbers: Tensor) -> None:
        start, stop = self._count, self._count + numbers.shape[1]
        while stop > self._held.shape[1]:
            self._held = np.concatenate([self._held, np.empty_like(self._held)], axis=1)
        self._held[:, start:stop] = numbers.cpu().numpy()
        self._places.append((place, start, stop))
        self._count = stop
