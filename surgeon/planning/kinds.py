"""Kinds of values: those that differ in numbers and names alone cost the same, and are looked at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from surgeon.planning.evaluation import measured, rounds
from surgeon.planning.step import Key, Step, Steps
from surgeon.space.kernels import kernel_named

_WORDS = {
    "low_rank": "adapter", "dora": "DoRA adapter", "BF16": "compensated rounding", "F16": "compensated rounding",
    "gather": "rows by token", "padded": "padding", "mxfp4": "unpack MXFP4", "awq": "unpack AWQ",
    "compressed": "unpack",
}  # fmt: skip
#: Steps that only prepare others.
_SILENT = ("load", "zeros", "frame:columns", "span:columns")
#: Steps that know what numbers that are no floats stand for.
_CODECS = ("fp8:", "codec:")


@dataclass(frozen=True, eq=False)
class Kind:
    """What is common to all values of a kind, told by one of them."""

    steps: Steps
    key: Key

    @cached_property
    def below(self) -> tuple[Step, ...]:
        """The steps the value rests on."""
        return self.steps.below(self.key)

    @cached_property
    def reason(self) -> str:
        """How it is made, in words."""
        kernels = [step.kernel.removesuffix("@last") for step in self.below if step.kernel not in _SILENT]
        return " → ".join(dict.fromkeys(_word(kernel) for kernel in kernels))

    @cached_property
    def input_bytes(self) -> int:
        """Bytes on disk it is made from."""
        return sum(step.stored.spec.nbytes for step in self.below if step.stored is not None)

    @cached_property
    def read_at_once(self) -> int:
        """Bytes of the largest tensor that a whole kernel gets in one piece; 0 where everything comes in blocks."""
        wholes = (
            s for s in self.below if s.kernel not in ("load", "same") and kernel_named(s.kernel).blocks == "whole"
        )
        aligned = (need.key for step in wholes for need in step.inputs if not need.whole)
        stored = (step.stored for key in aligned for step in self.steps.below(key))
        return max((found.spec.nbytes for found in stored if found is not None), default=0)

    @cached_property
    def looks(self) -> int:
        """How often those bytes are looked at."""
        return rounds(self.steps, self.key)

    @cached_property
    def packed(self) -> bool:
        """Whether it would be computed from tensors that are not floats, other than by a codec."""
        readers = (step for step in self.below if not step.kernel.startswith(_CODECS))
        stored = (self.steps[need.key].stored for step in readers for need in step.inputs)
        return any(found is not None and not found.spec.is_float for found in stored)

    @cached_property
    def spans(self) -> bool:
        """Whether it needs a statistic of the whole model."""
        return any(
            statistic.over(step.values) == "model"
            for step in measured(self.steps, self.key)
            for statistic in kernel_named(step.kernel).statistics.values()
        )


def _word(kernel: str) -> str:
    kind, _, name = kernel.rpartition(":")
    return f"{name} in core space" if kind == "core" else _WORDS.get(name, name)


@dataclass(frozen=True, eq=False)
class Kinds:
    """The kinds of a plan's values: same kernels, shapes, dtypes and settings other than numbers."""

    steps: Steps
    _numbers: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _of: dict[Key, int] = field(default_factory=dict)
    _kinds: list[Kind] = field(default_factory=list)

    def number(self, key: Key) -> int:
        """The number of a value's kind."""
        if key not in self._of:
            step = self.steps[key]
            about: tuple[Any, ...] = (step.kernel, step.spec.dtype, step.spec.shape)
            if step.inputs:
                words = tuple([pair for pair in step.settings if isinstance(pair[1], (str, bool))])
                needs = tuple([(need.whole, self.number(need.key)) for need in step.inputs])
                about = (*about, words, needs, len(self.steps.below(key)))
            number = self._numbers.setdefault(about, len(self._kinds))
            if number == len(self._kinds):
                self._kinds.append(Kind(self.steps, key))
            self._of[key] = number
        return self._of[key]

    def of(self, key: Key) -> Kind:
        """The kind of a value."""
        return self._kinds[self.number(key)]
