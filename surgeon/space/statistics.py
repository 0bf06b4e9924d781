"""What a method must know of a whole tensor before any block of it can be computed.

A statistic is frozen data that describes a reduction in rounds: each round looks at blocks, each block gives a
*partial*, and the partials give what the next round needs. Blocks start at multiples of `numeric.CHUNK`; the result
does not depend on how long they are. Called on plain tensors, the whole tensor is one block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from surgeon.space.numeric import chunk_sums, tree_sum

Place = tuple[int, int]
"""A block: number of its tensor (0 unless the statistic spans the model) and flat index of its first element."""


@dataclass(frozen=True)
class Statistic(ABC):
    """A reduction over blocks of a method's operand, [model, n] float32."""

    @property
    @abstractmethod
    def rounds(self) -> int:
        """How often the blocks are looked at."""

    def over(self, settings: Mapping[str, Any]) -> str:
        """``tensor``, or ``model`` when one result holds for every tensor of the model."""
        return "tensor"

    def wanted(self, known: Any, place: Place, count: int) -> bool:
        """Whether the next round needs the block at this place, of `count` elements."""
        return True

    def scratch(self, models: int, count: int, block: int, tensors: int = 1) -> int:
        """Bytes it needs at most beside the operand, for `count` elements in so many tensors, in blocks of `block`."""
        return 16 * models * block

    @abstractmethod
    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> Any:
        """What is known before the first round; `count` is the number of elements a model has."""

    @abstractmethod
    def observe(self, known: Any, values: Tensor, place: Place) -> Any:
        """The partial of one block."""

    def collect(self, known: Any, partials: dict[Any, Any], place: Place, partial: Any) -> None:
        """Add a block's partial to those collected; order must not matter."""
        partials[place] = partial

    @abstractmethod
    def conclude(self, known: Any, partials: Mapping[Any, Any]) -> Any:
        """What is known after a round."""

    @abstractmethod
    def at(self, known: Any, place: Place) -> Any:
        """The argument the method's function gets for the block at a place."""

    def of(self, values: Tensor, settings: Mapping[str, Any]) -> Any:
        """The argument for a whole tensor in hand: [model, …]."""
        flat = values.reshape(values.shape[0], -1)
        known = self.begin(flat.shape[0], flat.shape[1], settings)
        if flat.device.type != "meta":
            for _ in range(self.rounds):
                seen: dict[Any, Any] = {}
                self.collect(known, seen, (0, 0), self.observe(known, flat, (0, 0)))
                known = self.conclude(known, seen)
        return self.at(known, (0, 0))


# -- the k-th largest magnitude ---------------------------------------------------------------------------------------

_ALL = -1
"""A threshold below every magnitude's bits: all entries are kept."""


@dataclass(frozen=True)
class Cut:
    """Which entries of a block survive a selection by magnitude: those above, and equal ones up to a flat index."""

    bits: tuple[int, ...]
    last: tuple[int, ...]
    start: int

    def trim(self, values: Tensor) -> Tensor:
        """The values, [model, …], with all but the k largest magnitudes of each model set to zero."""
        flat = values.reshape(len(values), -1)
        trimmed = torch.empty_like(flat)
        for row, own, bits, last in zip(flat, trimmed, self.bits, self.last, strict=True):
            if bits == _ALL:
                own.copy_(row)
                continue
            ties = min(max(last + 1 - self.start, 0), row.numel())
            _shrink(row[:ties], own[:ties], bits - 1)
            _shrink(row[ties:], own[ties:], bits)
        return trimmed.reshape(values.shape)


def _shrink(values: Tensor, out: Tensor, bits: int) -> None:
    """Keep what is larger in magnitude than the float of these bits."""
    if bits < 0:
        out.copy_(values)
    elif values.numel():
        threshold = float(np.int32(bits).view(np.float32))
        if values.dtype == torch.float64:
            # Magnitudes are compared as float32, as they were counted.
            kept = torch.nn.functional.hardshrink(values.float(), threshold) != 0
            out.copy_(torch.where(kept, values, 0.0))
        else:
            torch.ops.aten.hardshrink.out(values, threshold, out=out)


@dataclass(frozen=True)
class _Search:
    """A selection after `step` rounds, one entry a model; `ties` are (span, how many of its ties to keep)."""

    step: int
    keep: tuple[int, ...]
    bins: tuple[int, ...]
    bits: tuple[int, ...]
    last: tuple[Place, ...]
    ties: tuple[tuple[Place, int] | None, ...]
    span: int
    """Elements whose lower bits are counted together; the last tie is then looked for in one span only."""


_NOWHERE = (1 << 62, 0)


def _span(model: bool) -> int:
    return 1 << (24 if model else 20)


@dataclass(frozen=True)
class _Tally:
    """How often each of some 16-bit numbers was seen."""

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, seen: np.ndarray) -> _Tally:
        """Count numbers."""
        values, counts = np.unique(seen.astype(np.uint16), return_counts=True)
        return cls(values, counts.astype(np.int32))

    def __add__(self, other: _Tally) -> _Tally:
        values, place = np.unique(np.concatenate([self.values, other.values]), return_inverse=True)
        counts = np.bincount(place, weights=np.concatenate([self.counts, other.counts]), minlength=len(values))
        return _Tally(values, counts.astype(np.int32))

    def times(self, value: int) -> int:
        """How often one number was seen."""
        return int(self.counts[self.values == value].sum())


@dataclass(frozen=True)
class KthMagnitude(Statistic):
    """The k-th largest magnitude, k = max(1, ⌊density · n⌋), and the flat index of the last entry kept at it.

    A selection on the bits, not a sort: the order of non-negative floats is that of their bits. Round one counts the
    upper 16 bits, round two the lower 16 of the one bin that matters, round three finds the place of the last tie.
    """

    density: str = "density"

    @property
    @override
    def rounds(self) -> int:
        return 3

    @override
    def over(self, settings: Mapping[str, Any]) -> str:
        return settings.get("over", "tensor")

    @override
    def scratch(self, models: int, count: int, block: int, tensors: int = 1) -> int:
        spans = count // _span(tensors > 1) + 2 * tensors
        return 16 * block + models * (6 * min(spans << 16, count) + (1 << 20) + 8 * min(_span(tensors > 1), count))

    @override
    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> _Search:
        shares = [float(share) for share in settings[self.density]]
        keep = tuple(count if share >= 1 else max(1, int(share * count)) for share in shares)
        bits = tuple(_ALL if share >= 1 or not count else 0 for share in shares)
        span = _span(self.over(settings) == "model")
        return _Search(0, keep, (0,) * models, bits, (_NOWHERE,) * models, (None,) * models, span)

    @override
    def wanted(self, known: _Search, place: Place, count: int) -> bool:
        if known.step < 2:
            return any(bits != _ALL for bits in known.bits)
        spans = {(place[0], span) for span in range(place[1] // known.span, -(-(place[1] + count) // known.span))}
        return any(tie is not None and tie[0] in spans for tie in known.ties)

    @override
    def observe(self, known: _Search, values: Tensor, place: Place) -> dict[tuple[int, Place], Any]:
        seen: dict[tuple[int, Place], Any] = {}
        for model, row in enumerate(values):
            if known.bits[model] != _ALL:
                bits = row.abs().float().view(torch.int32).cpu().numpy()
                seen |= {(model, at): found for at, found in _look(known, model, bits, place)}
        return seen

    @override
    def collect(self, known: _Search, partials: dict[Any, Any], place: Place, partial: Any) -> None:
        for key, found in partial.items():
            if key not in partials:
                partials[key] = found
            elif known.step < 2:
                partials[key] = partials[key] + found
            else:
                partials[key] = np.concatenate([partials[key], found])

    @override
    def conclude(self, known: _Search, partials: Mapping[Any, Any]) -> _Search:
        found = []
        for model, bits in enumerate(known.bits):
            own = {
                at: seen for (owner, at), seen in sorted(partials.items(), key=lambda item: item[0]) if owner == model
            }
            before = (known.keep[model], known.bins[model], bits, known.last[model], known.ties[model])
            found.append(_CONCLUDE[known.step](before, own) if own else before)
        return _Search(known.step + 1, *(tuple(column) for column in zip(*found, strict=True)), span=known.span)

    @override
    def at(self, known: _Search, place: Place) -> Cut:
        tensor, start = place
        last = tuple(index if own == tensor else (1 << 62 if own > tensor else -1) for own, index in known.last)
        return Cut(known.bits, last, start)


def _look(known: _Search, model: int, bits: np.ndarray, place: Place) -> Iterator[tuple[Place, np.ndarray | _Tally]]:
    """What a round wants to know of a block's bits: for the whole statistic, or by span."""
    tensor, start = place
    if known.step == 0:
        yield (0, 0), np.bincount(bits >> 16, minlength=1 << 15)
        return
    for span in range(start // known.span, -(-(start + len(bits)) // known.span)):
        low = max(span * known.span - start, 0)
        part = bits[low : (span + 1) * known.span - start]
        if known.step == 1:
            yield (tensor, span), _Tally.of(part[(part >> 16) == known.bins[model]] & 0xFFFF)
        elif known.ties[model] is not None and known.ties[model][0] == (tensor, span):  # type: ignore[index]
            yield (tensor, span), np.flatnonzero(part == known.bits[model]) + (start + low)


_Found = tuple[int, int, int, Place, tuple[Place, int] | None]


def _from_top(counts: np.ndarray, keep: int) -> tuple[int, int]:
    """The bin that holds the keep-th entry from the top, and how many of that bin are still to keep."""
    above = np.cumsum(counts[::-1])
    index = int(np.searchsorted(above, keep))
    before = int(above[index - 1]) if index else 0
    return len(counts) - 1 - index, keep - before


def _conclude_upper(before: _Found, seen: Mapping[Place, np.ndarray]) -> _Found:
    keep, _, bits, last, ties = before
    upper, keep = _from_top(seen[0, 0], keep)
    return keep, upper, bits, last, ties


def _conclude_lower(before: _Found, seen: Mapping[Place, _Tally]) -> _Found:
    keep, upper, _, last, _ = before
    counts = np.zeros(1 << 16, dtype=np.int64)
    for tally in seen.values():
        counts[tally.values] += tally.counts
    lower, left = _from_top(counts, keep)
    bits = upper << 16 | lower
    if left == counts[lower]:
        return left, upper, bits, last, None
    for span, tally in seen.items():
        if left <= tally.times(lower):
            return left, upper, bits, last, (span, left)
        left -= tally.times(lower)
    raise AssertionError("fewer ties than were counted")


def _conclude_place(before: _Found, seen: Mapping[Place, np.ndarray]) -> _Found:
    keep, upper, bits, _, tie = before
    if tie is None:
        return before
    places = np.sort(seen[tie[0]])
    return keep, upper, bits, (tie[0][0], int(places[tie[1] - 1])), None


_CONCLUDE = (_conclude_upper, _conclude_lower, _conclude_place)


def kth_magnitude(density: str) -> Any:
    """The default of a `Cut` argument: the selection of each model's largest magnitudes at the setting `density`."""
    return KthMagnitude(density)


# -- inner products ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InnerProducts(Statistic):
    """All inner products of the models, over the whole tensor, in float64 by a fixed tree."""

    @property
    @override
    def rounds(self) -> int:
        return 1

    @override
    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(float(i == j) for j in range(models)) for i in range(models))

    @override
    def observe(self, known: Any, values: Tensor, place: Place) -> dict[tuple[int, int], np.ndarray]:
        wide = values.double()
        pairs = [(i, j) for i in range(len(wide)) for j in range(i, len(wide))]
        return {(i, j): chunk_sums(wide[i] * wide[j]).cpu().numpy() for i, j in pairs}

    @override
    def conclude(self, known: Any, partials: Mapping[Place, dict[tuple[int, int], np.ndarray]]) -> Any:
        ordered = [seen for _, seen in sorted(partials.items())]
        models = len(known)
        sums = {
            pair: tree_sum(torch.from_numpy(np.concatenate([seen[pair] for seen in ordered]))) for pair in ordered[0]
        }
        return tuple(tuple(sums[min(i, j), max(i, j)] for j in range(models)) for i in range(models))

    @override
    def at(self, known: Any, place: Place) -> Sequence[Sequence[float]]:
        return known


def inner_products() -> Any:
    """The default of a `Products` argument: a symmetric table of numbers, [model][model]."""
    return InnerProducts()


Products = Sequence[Sequence[float]]
