"""The kernels of edits: the subspace with output norms folded in, and the edit itself in either layout of a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from typing_extensions import override

from surgeon.space.edit import EditMethod
from surgeon.space.kernels import Call, Kernel, register_kernels
from surgeon.space.registry import edit_named
from surgeon.space.statistics import Statistic
from surgeon.tensors import torch_dtype

#: Columns shorter than this share of the longest are none: an output norm's gain can be zero along a direction.
_RANK = 1e-7


def orthonormal(rows: Tensor, gains: Tensor | None = None) -> Tensor:
    """Orthonormal columns, [d, k] float64, of diag(gains)·rowsᵀ; what is linearly dependent leaves columns of zeros.

    What a layer with output norms writes is orthogonal to R in the stream where its weight is orthogonal to diag(γ)R.
    """
    columns = rows.double().T
    if gains is not None:
        columns = gains.double()[:, None] * columns
    length = torch.linalg.vector_norm(columns, dim=0)
    columns = columns / torch.where(length > 0, length, torch.ones_like(length))
    if columns.shape[1] == 1 or columns.device.type == "meta":
        return columns
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    return left * (values > _RANK * values[0]).double()


class Frame(Kernel):
    """The columns an edit works along, [d, k] float64, from directions (a setting) and gains (whole inputs).

    Gains are rounded to the dtype they are written in first: the zero is one of the file.
    """

    blocks = "whole"

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        rows = torch.cat([direction.rows(point) for direction, point in call.settings["directions"]])
        gains = None
        for gain, dtype in zip(call.wholes, call.settings["written"], strict=False):
            folded = gain.to(torch_dtype(dtype)).double() + call.settings["gain"]
            gains = folded if gains is None else gains * folded
        return orthonormal(rows.to(stack.device), gains)


class Editing(Kernel):
    """A registered edit of a weight [matrices, d, n]: the residual axis is the last but one."""

    def __init__(self, method: EditMethod[...]) -> None:
        self.method = method
        self.blocks = method.blocks

    @property
    @override
    def statistics(self) -> Mapping[str, Statistic]:
        return dict(self.method.signature.statistics) if self.blocks == "rows" else {}  # a whole tensor needs none

    @override
    def observed(self, stack: Tensor, call: Call, statistic: Statistic) -> list[tuple[int, Tensor]]:
        frame = call.wholes[0].to(stack.dtype)
        return [(matrix, frame[at].T @ stack[0][band]) for matrix, band, at in _bands(stack[0], call)]

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        frame = call.wholes[0].to(stack.dtype) if call.wholes else None
        if self.blocks == "whole":
            matrices = stack[0].reshape(-1, *stack[0].shape[-2:])
            return torch.stack([self._run(matrix, frame, None, call) for matrix in matrices])
        pieces = []
        for matrix, band, at in _bands(stack[0], call):
            known = next(iter(call.known.values()), None)
            inside = None if known is None else known[matrix].to(stack.dtype)
            pieces.append(self._run(stack[0][band], None if frame is None else frame[at], inside, call))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _run(self, weight: Tensor, frame: Tensor | None, inside: Tensor | None, call: Call) -> Tensor:
        arguments = self.method.arguments(weight, frame, inside)
        arguments |= {p.argument: call.settings[p.argument] for p in self.method.signature.parameters}
        return self.method.function(**arguments)


class EditingLast(Editing):
    """The same with the residual axis last: every row is a vector of the stream, and known by itself."""

    @property
    @override
    def statistics(self) -> Mapping[str, Statistic]:
        return {}

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        frame = call.wholes[0].to(stack.dtype) if call.wholes else None
        vectors = stack[0].reshape(-1, call.block.shape[-1])
        return self._run(vectors.T, frame, None, call).T


def _bands(tile: Tensor, call: Call) -> Iterator[tuple[int, slice, slice]]:
    """Each matrix a tile reaches into: its number, its rows in the tile, and which residual rows those are."""
    residual, first = call.block.shape[-2], call.block.rows.start
    row = first
    while row < first + len(tile):
        matrix, inside = divmod(row, residual)
        stop = min(first + len(tile), (matrix + 1) * residual)
        yield matrix, slice(row - first, stop - first), slice(inside, inside + stop - row)
        row = stop


def _edit_kernel(name: str) -> Kernel:
    method, _, layout = name.partition("@")
    return EditingLast(edit_named(method)) if layout == "last" else Editing(edit_named(method))


register_kernels("edit", _edit_kernel)
register_kernels("frame", {"columns": Frame()}.__getitem__)
