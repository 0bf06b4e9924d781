"""Roundings: how far apart neighbouring numbers of a dtype lie, and what a cast of an interval may give."""

from __future__ import annotations

import torch
from torch import Tensor

from surgeon.tensors import torch_dtype

#: Significant bits of a dtype, the hidden one included.
BITS_OF = {"F8_E4M3": 4, "BF16": 8, "F16": 11, "F32": 24, "F64": 53}

#: frexp exponent of the smallest normal number.
_LOWEST = {"F8_E4M3": -5, "BF16": -125, "F16": -13, "F32": -125, "F64": -1021}

_INTEGER = {"BF16": torch.int16, "F16": torch.int16, "F32": torch.int32, "F64": torch.int64}


def unit(dtype: str) -> float:
    """The unit roundoff: the largest relative error of one rounding to nearest."""
    return 2.0 ** -BITS_OF[dtype]


def ulp(values: Tensor, dtype: str) -> Tensor:
    """The distance to the next larger magnitude in a dtype, as float64."""
    wide = values.double()
    # frexp gives zero the exponent 0; its neighbour is the smallest number there is.
    exponent = torch.where(wide == 0, _LOWEST[dtype], torch.frexp(wide).exponent.clamp(min=_LOWEST[dtype]))
    return torch.pow(2.0, (exponent - BITS_OF[dtype]).double())


def cast(values: Tensor, dtype: str) -> Tensor:
    """Values rounded to a dtype, back as float64."""
    return values.to(torch_dtype(dtype)).double()


def representable(values: Tensor, dtype: str) -> bool:
    """Whether rounding to a dtype leaves every value as it is."""
    return bool((cast(values, dtype) == values.double()).all())


def between(found: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where a value lies in an interval; ends that are not numbers allow only what is not a number."""
    nothing = found.isnan() & low.isnan() & high.isnan()
    return ((found >= torch.minimum(low, high)) & (found <= torch.maximum(low, high))) | nothing


def near(found: Tensor, value: Tensor, slack: Tensor, dtype: str) -> Tensor:
    """Where a value is one that a dtype's rounding may give of what lies within `slack` of another."""
    return between(found, cast(value - slack, dtype), cast(value + slack, dtype))


def steps(first: Tensor, second: Tensor, dtype: str) -> Tensor:
    """How many representable numbers two tensors of one dtype are apart, entry by entry, as int64; ±0 are one."""
    one, other = (_ordered(values, dtype) for values in (first, second))
    return (one - other).abs()


def _ordered(values: Tensor, dtype: str) -> Tensor:
    """Integers in the order of the values."""
    bits = values.contiguous().view(_INTEGER[dtype])
    smallest = torch.iinfo(bits.dtype).min
    wide = bits.to(torch.int64)
    return torch.where(wide < 0, smallest - wide, wide)
