"""Rows taken from several matrices by index, as bringing a model to another vocabulary needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from surgeon.space.kernels import Call, Kernel, register_kernels
from surgeon.space.statistics import Place, Statistic

#: What stands where an input has no such row: added to anything, also to -0, it changes nothing.
ABSENT = -0.0


class Gather(Kernel):
    """The mean of the inputs that have the row, zero where none has. `shares`: how many those are, where not one."""

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        total = stack[0]
        for other in stack[1:]:
            total += other
        shares: np.ndarray | None = call.settings["shares"].index if call.settings["shares"] is not None else None
        if shares is None:
            return total
        columns, start = call.block.columns, call.block.start
        of_rows = shares[call.block.rows].repeat(columns)
        of_entries = torch.from_numpy(of_rows[start % columns :][: call.block.stop - start]).to(total.device)
        return (total / of_entries.clamp(min=1)).masked_fill_(of_entries == 0, 0.0)


class ColumnMeans(Statistic):
    """The mean of the first `rows` rows, [columns] in float64: summed tile by tile in their order."""

    @property
    @override
    def rounds(self) -> int:
        return 1

    @override
    def scratch(self, models: int, count: int, block: int, tensors: int = 1) -> int:
        return 0  # the kernel's dry run sees it

    @override
    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> Tensor:
        return torch.zeros(settings["columns"], dtype=torch.float64)

    @override
    def observe(self, known: Tensor, values: Tensor, place: Place) -> Tensor:
        return values.double().sum(0)

    @override
    def collect(self, known: Tensor, partials: dict[Any, Any], place: Place, partial: Tensor) -> None:
        partials["total"] = partials.get("total", torch.zeros_like(partial)) + partial

    @override
    def conclude(self, known: Tensor, partials: Mapping[Any, Any]) -> Tensor:
        return partials["total"]

    @override
    def at(self, known: Tensor, place: Place) -> Tensor:
        return known


class Padded(Kernel):
    """Rows, and after the first `rows` of them their mean."""

    blocks = "rows"

    @property
    @override
    def statistics(self) -> Mapping[str, Statistic]:
        return {"total": ColumnMeans()}

    @override
    def observed(self, stack: Tensor, call: Call, statistic: Statistic) -> Tensor:
        return stack[0].reshape(-1, call.block.columns)

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        tile, rows = stack[0].reshape(-1, call.block.columns), call.settings["rows"]
        mean = (call.known["total"] / rows).to(tile)
        tile[max(rows - call.block.rows.start, 0) :] = mean
        return tile


register_kernels("rows", {"gather": Gather(), "padded": Padded()}.__getitem__)
