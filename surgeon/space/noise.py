"""Counter-based randomness: a function of seed, tensor name, model and flat index, never of order or thread."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Two rounds of a 32-bit multiply-xorshift mix (the constants of Chris Wellons' "lowbias32", public domain).
_MIX = ((16, np.uint32(0x7FEB352D)), (15, np.uint32(0x846CA68B)))
_LAST = 16
#: Numbers hashed at once, so that they stay in cache: flat indices between two multiples of it.
_PIECE = 1 << 16


@dataclass(frozen=True)
class Noise:
    """A stream of uniform numbers for one block of one tensor; `models` names each model, so order is irrelevant."""

    seed: int = 0
    tensor: str = ""
    models: tuple[str, ...] = ()
    start: int = 0

    def uniform(self, like: Tensor) -> Tensor:
        """Numbers in [0, 1) with 24 bits, shaped as `like`: [model, …], float32. They are made on the CPU."""
        if like.device.type == "meta":
            return torch.empty_like(like, dtype=torch.float32)
        drawn = np.empty((like.shape[0], like[0].numel()), dtype=np.float32)
        for model, numbers in enumerate(drawn):
            self._fill(numbers, model)
        return torch.from_numpy(drawn).reshape(like.shape).to(like.device)

    def _fill(self, numbers: np.ndarray, model: int) -> None:
        name = self.models[model] if self.models else model
        digest = hashlib.sha256(f"{self.seed}\0{self.tensor}\0{name}".encode()).digest()
        low, high = (int.from_bytes(digest[i : i + 4], "little") for i in (0, 4))
        spare = np.empty(min(_PIECE, len(numbers)), dtype=np.uint32)
        for first, stop in _pieces(self.start, self.start + len(numbers)):
            above, below = divmod(first, 1 << 32)
            state = np.arange(stop - first, dtype=np.uint32)
            state += np.uint32(below)
            state ^= np.uint32(low)
            _mix(state, spare)
            state += np.uint32((above + high) & 0xFFFFFFFF)
            _mix(state, spare)
            state >>= 8
            part = numbers[first - self.start : stop - self.start]
            # Signed, since that is what processors turn into float32 at once.
            np.copyto(part, state.view(np.int32), casting="unsafe")
            part *= np.float32(2.0**-24)


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Runs of flat indices that cross no multiple of `_PIECE`: the upper half of their 64 bits is one number each."""
    while start < stop:
        end = min(start // _PIECE * _PIECE + _PIECE, stop)
        yield start, end
        start = end


def _mix(state: np.ndarray, spare: np.ndarray) -> None:
    """Hash 32-bit numbers in place."""
    spare = spare[: len(state)]
    for shift, factor in _MIX:
        np.right_shift(state, shift, out=spare)
        state ^= spare
        state *= factor
    np.right_shift(state, _LAST, out=spare)
    state ^= spare
