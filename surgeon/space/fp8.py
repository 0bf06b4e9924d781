"""FP8 weights: numbers of four significant bits and a scale for each block of them; read, and made again after an edit.

w = code · scale. The scale of a block is its largest magnitude over 448, the largest code (a power of two where the
format says so), in the dtype it is stored in; codes are rounded to nearest with that scale, after an edit so that what
it did along its directions stays done. A block that did not change keeps its scale and codes bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from surgeon.space.kernels import Call, Kernel, register_kernels
from surgeon.space.rounding import round_columns
from surgeon.tensors import torch_dtype

#: The largest number of F8_E4M3.
LARGEST = 448.0
#: What float32 leaves of 448 · scale / 448.
_ROUNDING = 2.0**-22

Block = tuple[int, int]


def maxima(weight: Tensor, block: Block) -> Tensor:
    """The largest magnitude of each block of a weight [..., rows, columns], [..., blocks down, blocks across]."""
    rows, columns = weight.shape[-2:]
    padded = pad(weight.abs(), (0, -columns % block[1], 0, -rows % block[0]))
    return padded.unflatten(-1, (-1, block[1])).unflatten(-3, (-1, block[0])).amax(dim=(-3, -1))


def scales(weight: Tensor, old: Tensor, block: Block, power: bool, dtype: torch.dtype) -> Tensor:
    """The scales of a weight, of the shape of `old`, its scales before, which stay where they serve as well."""
    before = old.reshape(_grid(weight, block, old))
    largest = maxima(weight, block)
    if before.numel() == 1:
        largest = largest.amax().reshape(before.shape)
    fresh = largest / LARGEST
    if power:
        fresh = torch.exp2(torch.ceil(torch.log2(fresh)))
    fresh = fresh.to(dtype).to(weight.dtype)
    least = LARGEST / 2 if power else LARGEST * (1 - _ROUNDING)
    serves = (largest >= least * before) & (largest <= LARGEST * (1 + _ROUNDING) * before)
    return torch.where(serves | (largest == 0), before, fresh).reshape(old.shape)


def codes(weight: Tensor, scale: Tensor, block: Block) -> Tensor:
    """The codes of a weight [..., rows, columns], as floats that F8_E4M3 holds."""
    return unrounded(weight, scale, block).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn).to(weight.dtype)


def balanced(weight: Tensor, scale: Tensor, block: Block, frame: Tensor) -> Tensor:
    """Codes of a matrix [d, n] whose products with a frame [d, k] are those of the weight.

    A small change of what was quantised before mostly rounds back to where it was: to nearest, a tenth and more of what
    an edit takes away would return. So some codes go to their other neighbour; within a band of columns that share
    their scales, frameᵀ(code · scale) is a product of the codes with a frame of its own.
    """
    grid = scale.reshape(_grid(weight, block, scale)).double()
    units = unrounded(weight, scale, block).clamp_(-LARGEST, LARGEST)
    columns = weight.shape[1] if grid.shape[1] == 1 else block[1]
    for number, (part, exact) in enumerate(zip(units.split(columns, 1), weight.split(columns, 1), strict=True)):
        weighed = frame * grid[:, number].repeat_interleave(block[0])[: len(frame), None]
        round_columns(part, weighed, torch.float8_e4m3fn, frame.T @ exact.double())
    return units


def unrounded(weight: Tensor, scale: Tensor, block: Block) -> Tensor:
    """A weight [..., rows, columns] in units of its scales."""
    rows, columns = weight.shape[-2:]
    spread = scale.reshape(_grid(weight, block, scale)).repeat_interleave(block[0], -2)[..., :rows, :]
    return weight / spread.repeat_interleave(block[1], -1)[..., :columns]


def _grid(weight: Tensor, block: Block, scale: Tensor) -> tuple[int, ...]:
    """The shape of scales that goes with a weight's; of a single one for all, ones."""
    *lead, rows, columns = weight.shape
    if scale.numel() == 1:
        return (*(1 for _ in lead), 1, 1)
    return (*lead, -(-rows // block[0]), -(-columns // block[1]))


class Dequantise(Kernel):
    """code · scale, of any run of a weight; the scales are a whole input."""

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        (height, width), block = call.settings["block"], call.block
        rows, columns = block.shape[-2:]
        grid = call.wholes[0].to(stack.dtype).reshape(-1, -(-rows // height), -(-columns // width))
        row = torch.arange(block.rows.start, block.rows.stop, device=stack.device)
        of_rows = grid[row // rows % len(grid), row % rows // height]
        start = block.start - block.rows.start * columns
        spread = of_rows.repeat_interleave(width, 1)[:, :columns].reshape(-1)[start:][: block.stop - block.start]
        return stack[0].mul_(spread)


class Scales(Kernel):
    """The scales of a weight; inputs, whole: the weight and its scales before."""

    blocks = "whole"

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        weight, old = call.wholes
        given = call.settings
        return scales(weight, old.to(weight.dtype), given["block"], given["power"], torch_dtype(given["dtype"]))


class Codes(Kernel):
    """The codes of a weight; inputs, whole: the weight, its scales as they are written, the frame it was edited along.

    ``last``: the residual axis is the last one.
    """

    blocks = "whole"

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        weight, scale, *frames = call.wholes
        scale, block = scale.to(weight.dtype), call.settings["block"]
        if not frames or weight.device.type == "meta":
            return codes(weight, scale, block)
        matrices = weight.reshape(-1, *weight.shape[-2:])
        grids = scale.expand(len(matrices), 1, 1) if scale.numel() == 1 else scale.reshape(len(matrices), -1)
        frame, last = frames[0].to(weight.device), call.settings["last"]
        made = [_turned(matrix, grid, block, frame, last) for matrix, grid in zip(matrices, grids, strict=True)]
        return torch.stack(made)


def _turned(matrix: Tensor, scale: Tensor, block: Block, frame: Tensor, last: bool) -> Tensor:
    """`balanced` of a matrix with the residual axis on either side."""
    if not last:
        return balanced(matrix, scale, block, frame)
    turned = scale.reshape(_grid(matrix, block, scale)).T.contiguous()
    return balanced(matrix.T.contiguous(), turned, (block[1], block[0]), frame).T


register_kernels("fp8", {"dequantise": Dequantise(), "scales": Scales(), "quantise": Codes()}.__getitem__)
