"""Exact coefficients: a fraction plus fractions of schedules, so that (1 - s)*a + s*b has mass 1 at every layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from surgeon.anatomy.stacks import Position
from surgeon.space.schedule import Layers, Rules, Schedule, exact, value_at


class ScheduleProduct(ValueError):
    """A schedule times a schedule, which is not a linear coefficient."""


@dataclass(frozen=True)
class Coefficient:
    """constant + Σ factor · schedule; canonical, so equal coefficients compare equal."""

    constant: Fraction
    scheduled: tuple[tuple[Schedule, Fraction], ...] = ()

    @classmethod
    def of(cls, value: int | float | str | Fraction | Schedule | Coefficient) -> Coefficient:
        """A coefficient from a number, a schedule or itself."""
        if isinstance(value, Coefficient):
            return value
        if isinstance(value, Layers | Rules):
            return _canonical(Fraction(0), [(value, Fraction(1))])
        return cls(exact(value))

    def __add__(self, other: Coefficient) -> Coefficient:
        return _canonical(self.constant + other.constant, (*self.scheduled, *other.scheduled))

    def __neg__(self) -> Coefficient:
        return self * Coefficient(Fraction(-1))

    def __mul__(self, other: Coefficient) -> Coefficient:
        if self.scheduled and other.scheduled:
            raise ScheduleProduct("a schedule is multiplied by a schedule; write the product as one schedule")
        left, right = (self, other) if not other.scheduled else (other, self)
        scaled = [(schedule, factor * right.constant) for schedule, factor in left.scheduled]
        return _canonical(left.constant * right.constant, scaled)

    @property
    def is_zero(self) -> bool:
        """Whether it is zero everywhere."""
        return not self.constant and not self.scheduled

    def is_number(self, value: int) -> bool:
        """Whether it is this number everywhere."""
        return self.constant == value and not self.scheduled

    def at(self, tensor: str, position: Position | None) -> Fraction | None:
        """The exact value at one tensor; None when a rule schedule has no rule for it."""
        total = self.constant
        for schedule, factor in self.scheduled:
            value = value_at(schedule, tensor, position)
            if value is None:
                return None
            total += factor * exact(value if not isinstance(value, bool) else int(value))
        return total

    def __str__(self) -> str:
        parts = [] if not self.constant and self.scheduled else [decimal(self.constant)]
        parts += [f"{decimal(factor)}*{schedule.name or 'schedule'}" for schedule, factor in self.scheduled]
        return " + ".join(parts)


def _canonical(constant: Fraction, scheduled: Iterable[tuple[Schedule, Fraction]]) -> Coefficient:
    factors: dict[Schedule, Fraction] = {}
    for schedule, factor in scheduled:
        factors[schedule] = factors.get(schedule, Fraction(0)) + factor
    kept = sorted(((s, f) for s, f in factors.items() if f), key=lambda pair: (_spelling(pair[0]), pair[1]))
    return Coefficient(constant, tuple(kept))


def _spelling(schedule: Schedule) -> str:
    """A text that tells schedules apart but for their names, which equality ignores."""
    return repr(schedule.values if isinstance(schedule, Layers) else schedule.rules)


def decimal(number: Fraction) -> str:
    """The shortest exact spelling: a decimal where there is one, else p/q."""
    twos_and_fives = number.denominator
    for prime in (2, 5):
        while twos_and_fives % prime == 0:
            twos_and_fives //= prime
    if twos_and_fives != 1:
        return f"{number.numerator}/{number.denominator}"
    digits = 0
    while (number * 10**digits).denominator != 1:
        digits += 1
    text = f"{abs(int(number * 10**digits)):0{digits + 1}d}"
    sign = "-" if number < 0 else ""
    return sign + (f"{text[:-digits]}.{text[-digits:]}" if digits else text)
