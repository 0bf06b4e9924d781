"""What a tensor is, without its values: dtype, shape, bytes. No torch at import."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: safetensors dtype → bits an element.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

#: Floating dtypes that arithmetic is done on, as safetensors spells them → as torch and recipes do.
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}

_INTEGERS = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64",
}  # fmt: skip

#: Last names of tensors that scale the activations of quantised weights, and mean nothing where these are in full.
ACTIVATIONS = (
    "input_scale", "activation_scale", "output_scale", "input_global_scale", "input_zero_point", "q_scale", "k_scale",
    "v_scale", "kv_scale",
)  # fmt: skip

#: Narrow floats, which mean something only with their scales.
_NARROW = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}


@dataclass(frozen=True)
class TensorSpec:
    """Dtype (safetensors spelling) and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements; a scalar has one."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.count * BITS[self.dtype] // 8

    @property
    def is_float(self) -> bool:
        """Whether arithmetic may be done on it (F16, BF16, F32, F64)."""
        return self.dtype in FLOATS

    def cast(self, dtype: str | None) -> TensorSpec:
        """The spec after a cast; only floating tensors are cast."""
        return TensorSpec(dtype, self.shape) if dtype and self.is_float else self

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype name."""
    import torch

    return getattr(torch, (FLOATS | _INTEGERS | _NARROW)[dtype])


def stored_dtype(name: str) -> str:
    """The safetensors spelling of a recipe's dtype: ``bfloat16`` → ``BF16``. ValueError when unknown."""
    for stored, spelled in FLOATS.items():
        if name == spelled:
            return stored
    raise ValueError(f"unknown dtype {name!r}; known: {', '.join(FLOATS.values())}")


def human_bytes(count: float) -> str:
    """1536 → '1.5 kB'; decimal units, as disks and model cards count."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def parse_bytes(text: str) -> int:
    """'400MB' → 400 000 000; decimal (kB, MB, GB) and binary (KiB, MiB, GiB) units. ValueError otherwise."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    units |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
    stripped = text.strip()
    number = stripped.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = stripped[len(number) :].strip().lower()
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        raise ValueError(f"{text!r} is not a size; write for example 400MB or 4GiB") from None
    if not value > 0 or math.isinf(value):
        raise ValueError(f"{text!r} is not a positive size")
    return int(value)
