"""The steps of a plan: frozen data that says what one tensor of one node is computed from, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from surgeon.store.header import Stored
from surgeon.tensors import TensorSpec


@dataclass(frozen=True)
class Key:
    """One tensor of one node; nodes are numbered in the plan."""

    node: int
    tensor: str


@dataclass(frozen=True)
class Input:
    """What a step needs: the same block of another value, or a whole value first."""

    key: Key
    whole: bool = False


@dataclass(frozen=True)
class Step:
    """How one value is computed. `kernel` is ``load`` for bytes on disk, else a name in `space.kernels`.

    An input may be any tensor of any node: an ablation behind an output norm needs that norm's merged gain.
    """

    key: Key
    spec: TensorSpec
    kernel: str
    inputs: tuple[Input, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    stored: Stored | None = None
    wide: bool = False

    @property
    def values(self) -> Mapping[str, Any]:
        """The settings by name."""
        return dict(self.settings)


@dataclass(frozen=True)
class Target:
    """One tensor of the output: which value it holds, in which dtype, and why.

    `action` is ``copy`` (the bytes of `stored`, after checking that `equals` hold the same) or ``compute``.
    """

    name: str
    spec: TensorSpec
    key: Key
    action: str
    reason: str
    stored: Stored | None = None
    equals: tuple[Stored, ...] = ()
    number: int = 0
    resident: bool = False
    reads: int = field(default=0, compare=False)


def below(steps: Mapping[Key, Step], key: Key) -> Iterator[Step]:
    """The steps a value rests on, each once, operands first, itself last."""
    seen: set[Key] = set()

    def visit(current: Key) -> Iterator[Step]:
        if current in seen:
            return
        seen.add(current)
        for need in steps[current].inputs:
            yield from visit(need.key)
        yield steps[current]

    yield from visit(key)
