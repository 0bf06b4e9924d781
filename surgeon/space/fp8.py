"""FP8 weights: numbers of four significant bits and a scale for each block of them; read, and made again after an edit.

w = code · scale. The scale of a block is its largest magnitude over 448, the largest code (a power of two where the
format says so), in the dtype it is stored in; codes are rounded to nearest with that scale. A block that did not change
keeps its scale and codes bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from surgeon.space.kernels import Call, Kernel, register_kernels
from surgeon.tensors import torch_dtype

#: The largest number of F8_E4M3.
LARGEST = 448.0
#: What float32 leaves of 448 · scale / 448.
_ROUNDING = 2.0**-22

Block = tuple[int, int]


def maxima(weight: Tensor, block: Block) -> Tensor:
    """The largest magnitude of each block, [..., ⌈rows / block⌉, ⌈columns / block⌉], of a weight [..., rows, columns]."""
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
    """The codes of a weight; inputs, whole: the weight and its scales as they are written."""

    blocks = "whole"

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        weight, scale = call.wholes
        return codes(weight, scale.to(weight.dtype), call.settings["block"])


register_kernels("fp8", {"dequantise": Dequantise(), "scales": Scales(), "quantise": Codes()}.__getitem__)
