"""From a contrast to a direction: measure once, fit at every point, take out what the guard names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from torch import Tensor

from surgeon.artifacts.direction import OWN, OWN_MID, Direction, bank
from surgeon.directions.contrast import Contrast
from surgeon.directions.examples import Example, neutral_examples
from surgeon.directions.guard import Guard, guard, guard_basis, share
from surgeon.directions.neutral import Neutral, measure_neutral
from surgeon.directions.positions import Position
from surgeon.directions.separation import Separation, separations, shuffled_rows, total
from surgeon.directions.statistics import Listener, measure, states
from surgeon.errors import Fault, RecipeError, RefusedError, nearest
from surgeon.runtime.load import Loaded
from surgeon.space.api import setting_of
from surgeon.space.fitter import Fitter, Moments
from surgeon.space.registry import fitter_named

#: Parts each set is measured in, so that labels can be exchanged afterwards without another pass.
_FOLDS = 4


class _Fitted(NamedTuple):
    """Rows, the share of them that the guard removed, and the sink's part of it."""

    rows: Tensor
    removed: float = 0.0
    sink: float = 0.0


@dataclass(frozen=True, eq=False)
class Measurement:
    """All that a fitter needs of a model: each set's moments, fold by fold, and what neutral text looks like."""

    fitter: Fitter[...]
    settings: Mapping[str, Any]
    position: str
    positive: tuple[Mapping[str, Moments], ...]
    negative: tuple[Mapping[str, Moments], ...]
    neutral: Neutral | None
    guard: Guard | None
    data_hash: str

    def direction(self, at: str = OWN, **about: Any) -> Direction:
        """The direction fitted at each point measured; `about` gains what it comes from and what the guard took out.

        A bank leaves out the points where the two sets are the same, such as the embedding of one last token.
        """
        fits = {point: self._fitted(point, *self.both(point)) for point in self.positive[0]}
        fitted = {point: one for point, one in fits.items() if one is not None}
        if not fitted:
            where = at if at in self.positive[0] else "any point"
            raise RefusedError(f"the two sets do not differ at {where}, position {self.position}", hint=_SAME)
        about |= {"fitter": self.fitter.name, "settings": dict(self.settings), "position": self.position}
        about |= {"data": self.data_hash}
        if self.guard is not None:
            shares = {"removed": {point: one.removed for point, one in fitted.items()}}
            shares |= {"sink": {point: one.sink for point, one in fitted.items()}}
            about["guard"] = {"components": len(self.guard.shares), **shares}
        found = bank({point: one.rows for point, one in fitted.items()}, at=at, **about)
        found.check(f"what {self.fitter.name} fitted")
        return found

    def both(self, point: str) -> tuple[Moments, Moments]:
        """The two sets' moments at a point."""
        return total(self.positive, point), total(self.negative, point)

    def shuffled(self, draws: int = 4) -> tuple[dict[str, Tensor], ...]:
        """Rows by point, fitted the same way with labels exchanged: the control of `separations`."""

        def rows(point: str, positive: Moments, negative: Moments) -> Tensor | None:
            fitted = self._fitted(point, positive, negative)
            return None if fitted is None else fitted.rows

        return shuffled_rows(self.positive, self.negative, rows, draws)

    def _fitted(self, point: str, positive: Moments, negative: Moments) -> _Fitted | None:
        """None where the sets do not differ by more than rounding."""
        if positive.near(negative):
            return None
        neutral = self.neutral.moments[point] if self.neutral is not None else None
        rows = self.fitter.rows(positive, negative, neutral, self.settings)
        if self.guard is None:
            return _Fitted(rows)
        return _Fitted(*guard(rows, self.guard.basis), share(rows, self.guard.basis[:1]))


_SAME = "measure at a later point, or at another position: the sets may differ only there"


def measurement(
    loaded: Loaded,
    fitter: str,
    contrast: Contrast,
    *,
    neutral: Sequence[Example] | None = None,
    at: str = OWN,
    position: str = "last",
    settings: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
) -> Measurement:
    """Run the model over the contrast and, where guard or fitter ask for it, a neutral set (ours if None is given)."""
    found = fitter_named(fitter)
    chosen = _settled(found, settings or {})
    Position.read(position)
    points = loaded.anatomy.points() if at in (OWN, OWN_MID) else (at,)
    if at not in (OWN, OWN_MID) and at not in loaded.anatomy.points():
        raise RefusedError(f"the model has no residual point {at!r}", hint=nearest(at, loaded.anatomy.points()))
    second, clamp = found.second_moments, float(chosen["winsorise"])
    tell = _counting(listener, len(contrast.positive) + len(contrast.negative))

    def folds(examples: Sequence[Example]) -> tuple[dict[str, Moments], ...]:
        parts = [sorted(examples, key=lambda example: example.content)[start::_FOLDS] for start in range(_FOLDS)]
        return tuple(measure(loaded, part, points, position, second, clamp, tell) for part in parts if part)

    held, shield = None, None
    if chosen["guard"] or "neutral" in found.sets:
        everyday = neutral_examples(loaded.has_chats) if neutral is None else neutral
        held = measure_neutral(loaded, everyday, position, second, clamp)
    if held is not None and chosen["guard"]:
        shield = guard_basis(held.first, held.products, int(chosen["components"]))
    positive, negative = folds(contrast.positive), folds(contrast.negative)
    return Measurement(found, chosen, position, positive, negative, held, shield, contrast.data_hash)


def fit(
    loaded: Loaded,
    fitter_name: str,
    contrast: Contrast,
    *,
    neutral: Sequence[Example] | None = None,
    at: str = OWN,
    position: str = "last",
    settings: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
    **about: Any,
) -> Direction:
    """A direction at one point, or with ``own`` a bank over all of them.

    `settings` are the fitter's own and those of measuring (`winsorise`, `guard`, `components`), numbers or exact.
    `about` is what the caller knows of the model (`model`, `fingerprint`).
    """
    given: dict[str, Any] = {"neutral": neutral, "at": at, "position": position}
    found = measurement(loaded, fitter_name, contrast, settings=settings, listener=listener, **given)
    return found.direction(at, **about)


def held_out(
    loaded: Loaded, measured: Measurement, direction: Direction, held: Contrast, listener: Listener | None = None
) -> tuple[Separation, ...]:
    """How well each point's direction tells examples apart that it was not fitted on, beside both controls."""
    points = tuple(direction.tensors)
    tell = _counting(listener, len(held.positive) + len(held.negative))
    positive, negative = (
        states(loaded, side, points, measured.position, listener=tell) for side in (held.positive, held.negative)
    )
    return separations(direction.tensors, positive, negative, measured.shuffled())


def _settled(fitter: Fitter[...], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting with its value or default, as plain numbers. RecipeError lists the unknown and the impossible."""
    known = {name: p for name, p in fitter.parameters.items() if name not in ("position", "neutral")}
    faults: list[Fault] = []
    chosen: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in known:
            faults.append(Fault(f"{fitter.name} has no setting {name!r}", hint=nearest(name, known)))
            continue
        setting = setting_of(known[name], value, faults)
        if not isinstance(setting, Fraction | bool | str):
            faults.append(Fault(f"{name} must be one value; a direction is measured before layers are chosen"))
        chosen[name] = known[name].type(setting) if isinstance(setting, Fraction) else setting
    missing = [name for name, p in known.items() if p.required and name not in settings]
    faults += [Fault(f"{fitter.name} needs the setting {name!r}") for name in missing]
    if faults:
        raise RecipeError(faults)
    return {name: chosen.get(name, parameter.default) for name, parameter in known.items()}


def _counting(listener: Listener | None, total: int) -> Listener | None:
    """A listener for parts of `total`, which tells `listener` about the whole."""
    if listener is None:
        return None
    told: Callable[[int, int], None] = listener
    done = iter(range(1, total + 1))
    return lambda _done, _total: told(next(done), total)
