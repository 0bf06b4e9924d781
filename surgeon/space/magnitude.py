"""The k-th largest magnitude of a tensor, without sorting it and without holding it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from surgeon.space.numeric import CHUNK
from surgeon.space.statistics import Place, Statistic

_ALL = -1
"""A threshold below every magnitude's bits: all entries are kept."""
_NONE = 0x7F800000
"""A threshold no magnitude is above: no entry is kept."""


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
            if bits in (_ALL, _NONE):
                own.zero_() if bits == _NONE else own.copy_(row)
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
class Sought:
    """What is known of one row: about which bin the threshold lies in, its bits once found, where its last tie is.

    `keep` entries of `count` survive, or a `share` of those that are not zero, at `least` so many. `tie` says in which
    span the tie is that parts those kept from those left out, and its number there.
    """

    row: int
    keep: int
    count: int
    bits: int
    share: float | None = None
    least: int = 0
    bin: int = 0
    found: bool = False
    last: Place = (1 << 62, 0)
    tie: tuple[Place, int] | None = None

    def kept(self, nonzero: int) -> int:
        """How many survive, once it is known how many are not zero."""
        if self.share is None:
            return self.keep
        return min(max(self.least, int(self.share * nonzero)), nonzero)

    @classmethod
    def keeping(cls, row: int, keep: int, count: int) -> Sought:
        """A search for the `keep` largest; nothing is to be found where none are kept, or more than there are."""
        if 0 < keep <= count:
            return cls(row, keep, count, 0)
        return cls(row, keep, count, _ALL if keep else _NONE, found=True)


@dataclass(frozen=True)
class Search:
    """The state of a selection before round `step`; lower bits are counted together over `span` elements."""

    step: int
    models: tuple[Sought, ...]
    span: int


@dataclass(frozen=True)
class _Tally:
    """How many entries lie above a window of bins, and how often each number inside it was seen."""

    above: int
    zeros: int
    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, bits: np.ndarray, window: tuple[int, int]) -> _Tally:
        """Count a block's bits."""
        low, high = window
        values, counts = np.unique(bits[(bits >= low) & (bits < high)], return_counts=True)
        zeros = bits.size - int(np.count_nonzero(bits))
        return cls(int(np.count_nonzero(bits >= high)), zeros, values, counts.astype(np.int32))

    def __add__(self, other: _Tally) -> _Tally:
        values, place = np.unique(np.concatenate([self.values, other.values]), return_inverse=True)
        counts = np.bincount(place, weights=np.concatenate([self.counts, other.counts]), minlength=len(values))
        return _Tally(self.above + other.above, self.zeros + other.zeros, values, counts.astype(np.int32))

    def times(self, value: int) -> int:
        """How often one number was seen."""
        return int(self.counts[self.values == value].sum())


#: Of every block, the first of so many parts is sampled; the threshold then lies within a bin of the guess or two.
_SAMPLED = 16


@dataclass(frozen=True)
class KthMagnitude(Statistic):
    """The k-th largest magnitude, k = max(1, ⌊density · n⌋), and the flat index of the last entry kept at it.

    Of equal magnitudes the first are kept.

    A selection on the bits, not a sort: the order of non-negative floats is that of their bits. A sample guesses the
    upper 16 bits of the threshold (round 0); one look at everything counts what lies above three such bins and tells
    apart what lies in them (round 1), which proves the guess; if it was wrong, everything is counted (round 2) and
    looked at again (round 3). The last round finds the place of the last tie, in one span.
    """

    density: str = "density"

    @property
    @override
    def rounds(self) -> int:
        return 5

    @property
    @override
    def reads(self) -> int:
        return 1

    @override
    def over(self, settings: Mapping[str, Any]) -> str:
        return settings.get("over", "tensor")

    @override
    def scratch(self, models: int, count: int, block: int, tensors: int = 1) -> int:
        span = _span(count)
        spans = count // span + 2 * tensors
        return 16 * block + models * (8 * min(spans * (3 << 16), count) + (1 << 20) + 8 * min(span, count))

    @override
    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> Search:
        shares = [float(share) for share in settings[self.density]]
        return self.search([count + 1 if share >= 1 else max(1, int(share * count)) for share in shares], count)

    def search(self, keep: Sequence[int], count: int) -> Search:
        """What is known before the search for the keep-th largest magnitudes among `count`, one a row observed.

        More than there are keeps all.
        """
        return self.searching((Sought.keeping(row, kept, count) for row, kept in enumerate(keep)), count)

    def searching(self, models: Iterable[Sought], count: int) -> Search:
        """What is known before these searches; several may look at one row."""
        return Search(0, tuple(models), _span(count))

    @override
    def wanted(self, known: Search, place: Place, count: int) -> int:
        if known.step == 4:
            spans = {(place[0], span) for span in range(place[1] // known.span, -(-(place[1] + count) // known.span))}
            return count if any(model.tie is not None and model.tie[0] in spans for model in known.models) else 0
        if all(model.found for model in known.models):
            return 0
        return count if known.step else min(count, max(count // _SAMPLED // CHUNK, 1) * CHUNK)

    @override
    def observe(self, known: Search, values: Tensor, place: Place) -> dict[tuple[int, Place], Any]:
        seen: dict[tuple[int, Place], Any] = {}
        rows = values.reshape(len(values), -1)
        bits: dict[int, np.ndarray] = {}
        for number, model in enumerate(known.models):
            if model.tie is not None if known.step == 4 else not model.found:
                if model.row not in bits:
                    bits[model.row] = rows[model.row].abs().float().view(torch.int32).cpu().numpy()
                seen |= {(number, at): found for at, found in _look(known, model, bits[model.row], place)}
        return seen

    @override
    def collect(self, known: Search, partials: dict[Any, Any], place: Place, partial: Any) -> None:
        for key, found in partial.items():
            if key not in partials:
                partials[key] = found
            elif known.step < 4:
                partials[key] = partials[key] + found
            else:
                partials[key] = np.concatenate([partials[key], found])

    @override
    def conclude(self, known: Search, partials: Mapping[Any, Any]) -> Search:
        models = []
        for number, model in enumerate(known.models):
            own = {at: seen for (of, at), seen in sorted(partials.items(), key=lambda item: item[0]) if of == number}
            models.append(_CONCLUDE[known.step](model, own) if own else model)
        return Search(known.step + 1, tuple(models), known.span)

    @override
    def at(self, known: Search, place: Place) -> Cut:
        return cut_at(known.models, place)


def cut_at(models: Sequence[Sought], place: Place) -> Cut:
    """What searches found, for the block at a place."""
    tensor, start = place
    places = [model.last for model in models]
    last = tuple(index if own == tensor else (1 << 62 if own > tensor else -1) for own, index in places)
    return Cut(tuple(model.bits for model in models), last, start)


def magnitudes(search: Search) -> tuple[float, ...]:
    """The magnitudes found; 0 where all entries are kept."""
    return tuple(float(np.int32(max(model.bits, 0)).view(np.float32)) for model in search.models)


def _span(count: int) -> int:
    """At most 32 or so, so that what is kept for each is bounded."""
    return 1 << max(21, (count >> 5).bit_length())


def _window(model: Sought) -> tuple[int, int]:
    return max(model.bin - 1, 0) << 16, (model.bin + 2) << 16


def _look(known: Search, model: Sought, bits: np.ndarray, place: Place) -> Iterator[tuple[Place, np.ndarray | _Tally]]:
    """What a round wants to know of a block's bits: for the whole statistic, or by span."""
    tensor, start = place
    if known.step in (0, 2):
        yield (0, 0), np.bincount(bits >> 16, minlength=1 << 15)
        return
    for span in range(start // known.span, -(-(start + len(bits)) // known.span)):
        low = max(span * known.span - start, 0)
        part = bits[low : (span + 1) * known.span - start]
        if known.step < 4:
            yield (tensor, span), _Tally.of(part, _window(model))
        elif model.tie is not None and model.tie[0] == (tensor, span):
            yield (tensor, span), np.flatnonzero(part == model.bits) + (start + low)


def _guess(model: Sought, seen: Mapping[Place, np.ndarray]) -> Sought:
    """The bin the threshold lies in, by the share of entries above; exact when all were counted."""
    counts = seen[0, 0]
    above = np.cumsum(counts[::-1])
    looked = int(above[-1])
    # The lowest bin holds what is zero, or next to it.
    wanted = model.keep * looked // model.count if model.share is None else model.kept(looked - int(counts[0]))
    return replace(model, bin=len(counts) - 1 - int(np.searchsorted(above, max(1, wanted))))


def _prove(model: Sought, seen: Mapping[Place, _Tally]) -> Sought:
    """The threshold's bits, if it lies in the window, and where the last of the entries equal to it is."""
    keep = model.kept(model.count - sum(tally.zeros for tally in seen.values()))
    model = replace(model, keep=keep, share=None)
    if not keep:
        return replace(model, bits=_NONE, found=True)
    left = keep - sum(tally.above for tally in seen.values())
    whole = functools.reduce(_Tally.__add__, seen.values())
    below = np.cumsum(whole.counts[::-1].astype(np.int64))
    if not len(below) or not 0 < left <= below[-1]:
        return model
    at = int(np.searchsorted(below, left))
    bits = int(whole.values[len(below) - 1 - at])
    left -= int(below[at - 1]) if at else 0
    model = replace(model, bits=bits, found=True)
    if left == whole.times(bits):
        return model
    return replace(model, tie=_span_of(left, {span: tally.times(bits) for span, tally in seen.items()}))


def _span_of(number: int, counts: Mapping[Place, int]) -> tuple[Place, int]:
    """In which span the so manieth tie is, and its number there."""
    for span, count in counts.items():
        if number <= count:
            return span, number
        number -= count
    raise AssertionError("more ties were asked for than there are")


def _locate(model: Sought, seen: Mapping[Place, np.ndarray]) -> Sought:
    """The flat index of the last entry kept at the threshold."""
    if model.tie is None:
        return model
    span, count = model.tie
    return replace(model, last=(span[0], int(np.sort(seen[span])[count - 1])), tie=None)


_CONCLUDE = (_guess, _prove, _guess, _prove, _locate)


def kth_magnitude(density: str) -> Any:
    """The default of a `Cut` argument: the selection of each model's largest magnitudes at the setting `density`."""
    return KthMagnitude(density)
