"""Settings: a number, word or flag, or one that varies over the layers or by rule; all frozen, all exact."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from surgeon.anatomy.stacks import Position
from surgeon.space.select import matches

Scalar = Fraction | bool | str


def exact(number: int | float | str | Fraction) -> Fraction:
    """The decimal that was written: 0.1 is 1/10. ValueError for NaN, infinities and what is no number."""
    if isinstance(number, bool):
        raise ValueError(f"{number} is not a number")
    if isinstance(number, Fraction):
        return number
    try:
        return Fraction(repr(number) if isinstance(number, float) else str(number))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{number!r} is not a finite number") from None


@dataclass(frozen=True)
class Layers:
    """Values spread evenly over the layers, interpolated between; embeddings take the first, the head the last.

    Words and flags are not interpolated: the value at or below the place counts.
    """

    values: tuple[Scalar, ...]
    name: str = field(default="", compare=False)

    def at(self, position: Position, *, head_first: bool = False) -> Scalar:
        """The value at a position.

        `head_first` is mergekit's habit: the head takes the first value, a layer that is the only one the last.
        """
        index, last = position.fraction
        if head_first and position.place == "after":
            index = 0
        elif head_first and position.place == "layer" and position.count == 1:
            index = last
        place = Fraction(index, last) * (len(self.values) - 1)
        below = self.values[int(place)]
        above = self.values[min(int(place) + 1, len(self.values) - 1)]
        share = place - int(place)
        if isinstance(below, Fraction) and isinstance(above, Fraction):
            return (1 - share) * below + share * above
        return below


@dataclass(frozen=True)
class Rule:
    """A value for the tensors that a pattern fits; None fits all."""

    targets: str | None
    value: Scalar | Layers


@dataclass(frozen=True)
class Rules:
    """The first rule that fits a tensor gives the value."""

    rules: tuple[Rule, ...]
    name: str = field(default="", compare=False)

    def pick(self, tensor: str) -> Scalar | Layers | None:
        """The value of the first fitting rule, or None."""
        return next((rule.value for rule in self.rules if matches(rule.targets, tensor)), None)


Schedule = Layers | Rules
Setting = Scalar | Layers | Rules


class UnknownLayer(Exception):
    """A list over the layers met a tensor whose layer is not known."""


def value_at(setting: Setting, tensor: str, position: Position | None, *, head_first: bool = False) -> Scalar | None:
    """The value of a setting at one tensor; None when no rule fits. `UnknownLayer` when a list needs a layer."""
    if isinstance(setting, Rules):
        picked = setting.pick(tensor)
        return None if picked is None else value_at(picked, tensor, position, head_first=head_first)
    if not isinstance(setting, Layers):
        return setting
    if len(setting.values) == 1:
        return setting.values[0]
    if position is None:
        raise UnknownLayer(tensor)
    return setting.at(position, head_first=head_first)


def patterns(setting: Setting) -> tuple[str, ...]:
    """The target patterns a setting names."""
    return tuple(rule.targets for rule in setting.rules if rule.targets) if isinstance(setting, Rules) else ()
