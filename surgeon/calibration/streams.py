"""Examples on their way through a model, a few blocks at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.runtime.load import Loaded
from surgeon.runtime.prefix import advanced, closed
from surgeon.runtime.text import Encoded


@dataclass(frozen=True, eq=False)
class Streams:
    """The examples on their way through a model: what each one's last block gave, from which the next ones go on."""

    loaded: Loaded
    encoded: Sequence[Encoded]
    given: list[Any]

    @classmethod
    def start(cls, loaded: Loaded, encoded: Sequence[Encoded]) -> Streams:
        """Before the first block."""
        return cls(loaded, encoded, [None] * len(encoded))

    def through(self, first: int, end: int, *, keep: bool = True) -> None:
        """Run the blocks first to end; with `keep` off, look only."""
        for at, one in enumerate(self.encoded):
            output = advanced(self.loaded, one.ids, self.given[at], first, end)
            if keep:
                self.given[at] = output

    def rest(self) -> None:
        """Run what lies around the blocks, once they have all been run."""
        for one, given in zip(self.encoded, self.given, strict=True):
            closed(self.loaded, one.ids, given)
