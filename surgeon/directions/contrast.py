"""Contrast sets: examples that show a manner and examples that do not, read from JSON lines, checked and split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from blake3 import blake3

from surgeon.directions.examples import Example, read_examples
from surgeon.directions.topics import topics
from surgeon.errors import RefusedError

#: Of a group of near-duplicates, at most this many times the held-out part wanted.
_LARGEST = 2


@dataclass(frozen=True)
class Contrast:
    """Two sets of examples that differ in what is looked for. RefusedError where they cannot show it."""

    positive: tuple[Example, ...]
    negative: tuple[Example, ...]

    def __post_init__(self) -> None:
        sizes = f"{len(self.positive)} positive and {len(self.negative)} negative examples"
        if not self.positive and not self.negative:
            raise RefusedError("the contrast is empty: no positive and no negative examples", hint=_FILES)
        if not self.positive or not self.negative:
            raise RefusedError(f"the contrast is one-sided: {sizes}", hint=_FILES)
        if {example.is_chat for example in self.positive} != {example.is_chat for example in self.negative}:
            hint = "write both with `prompt` (or `messages`), or both with `text`"
            raise RefusedError("one set of the contrast holds chats, the other plain texts", hint=hint)
        self._refuse_overlap()

    def _refuse_overlap(self) -> None:
        left, right = ({one.content: one for one in reversed(side)} for side in (self.positive, self.negative))
        if left.keys() == right.keys():
            hint = "give the examples that show the manner as positive, others as negative"
            raise RefusedError("the positive and the negative examples are the same", hint=hint)
        if both := [content for content in reversed(left) if content in right]:
            listed = "; ".join(f"{_short(left[one])}{_where(left[one], right[one])}" for one in both[:5])
            more = f"; and {len(both) - 5} more" if len(both) > 5 else ""
            count = f"{len(both)} example{'s are' if len(both) > 1 else ' is'} in both sets"
            raise RefusedError(f"{count}: {listed}{more}", hint="remove them from one of the sets")

    @classmethod
    def read(cls, positive: Path, negative: Path) -> Contrast:
        """The contrast of two files."""
        return cls(read_examples(positive), read_examples(negative))

    @cached_property
    def data_hash(self) -> str:
        """blake3 of what both sets hold, whatever the order of their lines (hex)."""
        sides = ("\n".join(sorted(example.content for example in side)) for side in (self.positive, self.negative))
        return blake3("\n\n".join(sides).encode()).hexdigest()


_FILES = 'each set is a file of JSON lines such as {"prompt": "…"}'


def split(contrast: Contrast, held_out: float = 0.25) -> tuple[Contrast, Contrast]:
    """A training and a held-out part; examples of one topic, in either set, fall on the same side.

    Which side is a matter of content alone: the order of the lines changes nothing.
    """
    if not 0 < held_out < 1:
        raise RefusedError(f"the held-out share must lie between 0 and 1, not {held_out}", hint="0.25 is usual")
    sides = (contrast.positive, contrast.negative)
    wanted = [max(1, round(held_out * len(side))) for side in sides]
    everyone = [*contrast.positive, *contrast.negative]
    held: set[int] = set()
    counts = [0, 0]
    for group in sorted(topics([example.asked for example in everyone]), key=lambda group: _rank(group, everyone)):
        adds = [sum(member < len(sides[0]) for member in group), sum(member >= len(sides[0]) for member in group)]
        needed = any(add and count < want for add, count, want in zip(adds, counts, wanted, strict=True))
        if needed and all(c + add <= _LARGEST * want for add, c, want in zip(adds, counts, wanted, strict=True)):
            held.update(group)
            counts = [count + add for add, count in zip(adds, counts, strict=True)]
    parts = [_part(everyone, len(sides[0]), held, inside) for inside in (False, True)]
    if not all(side for part in parts for side in part):
        raise RefusedError(
            f"{len(sides[0])} positive and {len(sides[1])} negative examples cannot be split into two parts by topic",
            hint="give more examples, on more topics, or held-out examples of their own",
        )
    return Contrast(*parts[0]), Contrast(*parts[1])


def _part(
    everyone: Sequence[Example], border: int, held: set[int], inside: bool
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    kept = [(number, example) for number, example in enumerate(everyone) if (number in held) is inside]
    return tuple(one for number, one in kept if number < border), tuple(one for number, one in kept if number >= border)


def _rank(group: Iterable[int], everyone: Sequence[Example]) -> str:
    return blake3(min(everyone[member].content for member in group).encode()).hexdigest()


def _where(*examples: Example) -> str:
    places = ", ".join(str(example.origin) for example in examples if example.origin is not None)
    return f" ({places})" if places else ""


def _short(example: Example) -> str:
    text = " ".join(example.asked.split())
    return repr(text if len(text) <= 60 else text[:59] + "…")
