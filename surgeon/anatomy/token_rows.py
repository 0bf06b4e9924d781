"""Which rows of which models a vocabulary's matrix is made of, in the vocabulary it is brought to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from surgeon.errors import MismatchError

NONE = -1


@dataclass(frozen=True)
class TokenSource:
    """Where a token's row comes from in a model that lacks it, or with `force` in every model.

    From model number `part`, under its own name or as `other` (a token, or a row); without a part it is zero.
    """

    token: str
    part: int | None = None
    other: str | int | None = None
    force: bool = False

    def at(self, part: int) -> TokenSource:
        """The same, from the model of this number."""
        return replace(self, part=part)


@dataclass(frozen=True, eq=False)
class Owner:
    """A model's rows: its name, its tokens, and how many rows its matrices have."""

    label: str
    ids: Mapping[str, int]
    rows: int

    def row(self, token: str | int) -> int | None:
        """The row of a token; None where it has none, also where its matrix ends before."""
        row = token if isinstance(token, int) else self.ids.get(token)
        return row if row is not None and 0 <= row < self.rows else None


@dataclass(frozen=True, eq=False)
class Joining:
    """How one model's matrix is brought to `ids`: its number, that of the base whose rows come first, and sources.

    Without a base, a token that the model lacks takes the mean of its owners. `holes` is the model whose rows stand
    where `ids` has no token.
    """

    owners: Sequence[Owner]
    ids: Mapping[str, int]
    size: int
    of: int
    base: int | None
    holes: int
    sources: Mapping[str, TokenSource]

    def rows(self) -> list[np.ndarray]:
        """For each owner which of its rows is meant, int32 [size]; a row is the mean of those that are not `NONE`."""
        self._check()
        found = [np.full(self.size, NONE, np.int32) for _ in self.owners]
        filled = np.zeros(self.size, bool)
        for token, row in self.ids.items():
            filled[row] = True
            for owner, source in self._meant(token):
                found[owner][row] = source
        holes = np.flatnonzero(~filled)
        holes = holes[holes < self.owners[self.holes].rows]
        found[self.holes][holes] = holes
        return found

    def _meant(self, token: str) -> list[tuple[int, int]]:
        """The owners of a token and their rows, as the rules have it."""
        own, source = self.owners[self.of].row(token), self.sources.get(token)
        if source is not None and (source.force or own is None):
            return [] if source.part is None else [(source.part, self._row(source))]
        if own is not None:
            return [(self.of, own)]
        if self.base is not None and (row := self.owners[self.base].row(token)) is not None:
            return [(self.base, row)]
        rows = ((number, owner.row(token)) for number, owner in enumerate(self.owners))
        return [(number, row) for number, row in rows if row is not None]

    def _row(self, source: TokenSource) -> int:
        assert source.part is not None
        row = self.owners[source.part].row(source.token if source.other is None else source.other)
        assert row is not None
        return row

    def _check(self) -> None:
        """MismatchError for sources that have no such token, all at once."""
        faults = []
        for source in self.sources.values():
            if source.part is None:
                continue
            owner, wanted = self.owners[source.part], source.token if source.other is None else source.other
            if owner.row(wanted) is None:
                faults.append(f"the row of {source.token!r} is to come from {owner.label}, which has no {wanted!r}")
        if faults:
            raise MismatchError("; ".join(faults), hint="name a model that has it, or {kind: zero}")
