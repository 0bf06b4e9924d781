"""Counter-based randomness: a function of seed, tensor name, model and flat index, never of order or thread."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

# Two rounds of a 32-bit multiply-xorshift mix (the constants of Chris Wellons' "lowbias32", public domain), on int64.
_MIX = ((16, 0x7FEB352D), (15, 0x846CA68B))
_LOW = 0xFFFFFFFF


@dataclass(frozen=True)
class Noise:
    """A stream of uniform numbers for one block of one tensor; `models` names each model, so order is irrelevant."""

    seed: int = 0
    tensor: str = ""
    models: tuple[str, ...] = ()
    start: int = 0

    def uniform(self, like: Tensor) -> Tensor:
        """Numbers in [0, 1) with 24 bits, shaped as `like`: [model, …], float32."""
        count = like[0].numel()
        index = torch.arange(self.start, self.start + count, dtype=torch.int64, device=like.device)
        drawn = [self._hash(index, model) for model in range(like.shape[0])]
        return (torch.stack(drawn) >> 8).float().mul(2.0**-24).reshape(like.shape)

    def _hash(self, index: Tensor, model: int) -> Tensor:
        name = self.models[model] if self.models else model
        digest = hashlib.sha256(f"{self.seed}\0{self.tensor}\0{name}".encode()).digest()
        low, high = (int.from_bytes(digest[i : i + 4], "little") for i in (0, 4))
        state = _mix((index & _LOW) ^ low)
        return _mix((state + (index >> 32) + high) & _LOW)


def _mix(state: Tensor) -> Tensor:
    for shift, factor in _MIX:
        state = ((state ^ (state >> shift)) * factor) & _LOW
    return state ^ (state >> 16)
