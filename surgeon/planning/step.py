"""The steps of a plan: frozen data that says what one tensor of one node is computed from, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.store.header import Stored
from surgeon.tensors import TensorSpec

if TYPE_CHECKING:
    from surgeon.planning.promises import Promise
    from surgeon.space.reshape import Rows


class Key(NamedTuple):
    """One tensor of one node; nodes are numbered in the plan."""

    node: int
    tensor: str


class Input(NamedTuple):
    """What a step needs: the same block of another value, a whole value first, or `rows` of another value by number."""

    key: Key
    whole: bool = False
    rows: Rows | None = None


class Step(NamedTuple):
    """How one value is computed. `kernel` is ``load`` for bytes on disk, else a name in `space.kernels`.

    An input may be any tensor of any node: an ablation behind an output norm needs that norm's merged gain. `number`
    tells tensors apart in statistics that span the model.
    """

    key: Key
    spec: TensorSpec
    kernel: str
    inputs: tuple[Input, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    stored: Stored | None = None
    wide: bool = False
    number: int = 0

    @property
    def values(self) -> Mapping[str, Any]:
        """The settings by name."""
        return dict(self.settings)


class Requantised(NamedTuple):
    """The codes of a quantised weight: the value they stand for, and what will be read of them and their scales."""

    exact: Key
    read: Key


@dataclass(frozen=True)
class Target:
    """One tensor of the output: which value it holds, in which dtype, and why.

    `action` is ``copy`` (the bytes of `stored`, after checking that `equals` hold the same) or ``compute``. `promise`
    is what holds of the bytes written; `requantised` where these are codes.
    """

    name: str
    spec: TensorSpec
    key: Key
    action: str
    reason: str
    stored: Stored | None = None
    equals: tuple[Stored, ...] = ()
    resident: bool = False
    reads: int = field(default=0, compare=False)
    promise: Promise | None = None
    requantised: Requantised | None = None


class Steps(dict[Key, Step]):
    """The steps of a plan by key; what a value rests on is walked once."""

    def __init__(self) -> None:
        super().__init__()
        self._below: dict[Key, tuple[Step, ...]] = {}

    def below(self, key: Key) -> tuple[Step, ...]:
        """The steps a value rests on, each once, operands first, itself last."""
        if key not in self._below:
            step = self[key]
            found = {under.key: under for need in step.inputs for under in self.below(need.key)}
            self._below[key] = (*found.values(), step)
        return self._below[key]


def below(steps: Mapping[Key, Step], key: Key) -> tuple[Step, ...]:
    """The steps a value rests on, each once, operands first, itself last."""
    if not isinstance(steps, Steps):
        steps, plain = Steps(), steps
        steps.update(plain)
    return steps.below(key)
