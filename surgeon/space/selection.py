"""Further selections by magnitude: between two ranks, and among the entries that are not zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from typing_extensions import override

from surgeon.space.magnitude import Cut, KthMagnitude, Search, Sought, cut_at
from surgeon.space.statistics import Place


@dataclass(frozen=True)
class Band:
    """Which entries of a block lie between two ranks of magnitude: among the `outer` ones and not the `inner`."""

    outer: Cut
    inner: Cut

    def trim(self, values: Tensor) -> Tensor:
        """The values, [model, …], with all but the middle magnitudes of each model set to zero."""
        return self.outer.trim(values).sub_(self.inner.trim(values))


@dataclass(frozen=True)
class MagnitudeBand(KthMagnitude):
    """⌊density · n⌋ entries of each model, below its ⌊gamma · n⌋ largest; where both do not fit, above them less.

    A density of 1 keeps all. The setting `least` says how many entries are kept at least. Of equal magnitudes, the
    first count as the larger.
    """

    gamma: str = "gamma"
    least: str = "least"

    @override
    def scratch(self, models: int, count: int, block: int, tensors: int = 1) -> int:
        return super().scratch(2 * models, count, block, tensors)

    @override
    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> Search:
        outer, inner = [], []
        for row, (density, gamma) in enumerate(zip(settings[self.density], settings[self.gamma], strict=True)):
            kept = count if density >= 1 else min(max(int(density * count), settings[self.least]), count)
            reached = min(kept + int(gamma * count), count)
            outer.append(Sought.keeping(row, reached if reached < count else count + 1, count))
            inner.append(Sought.keeping(row, reached - kept, count))
        return self.searching((*outer, *inner), count)

    @override
    def at(self, known: Search, place: Place) -> Band:  # type: ignore[override]
        half = len(known.models) // 2
        return Band(cut_at(known.models[:half], place), cut_at(known.models[half:], place))


@dataclass(frozen=True)
class NonzeroShare(KthMagnitude):
    """The largest magnitudes of a view's one row: a share of its entries that are not zero, at least `least`."""

    least: str = "least"

    @override
    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> Search:
        share = settings[self.density]
        sought = Sought(0, count, count, 0, share=share, least=settings[self.least], found=share >= 1 or not count)
        return self.searching((sought,), count)


def magnitude_band() -> Any:
    """The default of a `Band` argument, by the settings `density`, `gamma` and `least`."""
    return MagnitudeBand()


def nonzero_share(view: Callable[..., Tensor], share: str) -> Any:
    """The default of a `Cut` argument: a selection among a view's entries by the settings `share` and `least`."""
    return NonzeroShare(share, view=view)
