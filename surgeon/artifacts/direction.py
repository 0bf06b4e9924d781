"""Directions: a subspace of the residual stream at one point, or a bank of them, one a point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from surgeon.artifacts.artifact import Artifact
from surgeon.errors import RefusedError, nearest

OWN, OWN_MID = "own", "own.mid"


@dataclass(frozen=True, eq=False)
class Direction(Artifact):
    """Rows that span a subspace at each residual point: float32 [k, d], named by the point (``embed``, ``block.14``).

    `about` says what it was measured on; its key ``at`` is the point it is used at unless a recipe says otherwise, or
    ``own``: each block's writers use that block's own.
    """

    kind: ClassVar[str] = "direction"

    @property
    def width(self) -> int:
        """d, the width of the residual stream."""
        return next(iter(self.tensors.values())).shape[1]

    @property
    def at(self) -> str:
        """Where it is used by default."""
        return str(self.about.get("at") or (next(iter(self.tensors)) if len(self.tensors) == 1 else OWN))

    def rows(self, point: str) -> Tensor:
        """The rows at one residual point, [k, d]. RefusedError, with the nearest point, where there are none."""
        if point not in self.tensors:
            label = self.about.get("name", "the direction")
            raise RefusedError(f"{label} holds nothing at {point}", hint=nearest(point, self.tensors))
        return self.tensors[point]

    def check(self, label: str) -> None:
        """Refuse shapes and values that are no direction: NaN, infinity, a zero row, rows of differing widths."""
        if not self.tensors:
            raise RefusedError(f"{label} holds no direction")
        for point, value in self.tensors.items():
            if value.ndim != 2 or value.shape[1] != self.width:
                raise RefusedError(f"{label} at {point} has shape {list(value.shape)}; [k, {self.width}] is needed")
            if not value.isfinite().all() or (value.abs().amax(1) == 0).any():
                raise RefusedError(f"{label} at {point} holds NaN, infinity or a row of zeros")


def direction(rows: Tensor, at: str, **about: object) -> Direction:
    """A direction at one point from rows in hand, [k, d] or [d]."""
    return bank({at: rows}, at=at, **about)


def bank(rows: Mapping[str, Tensor], at: str = OWN, **about: object) -> Direction:
    """A bank from rows by point, each [k, d] or [d]."""
    held = {point: value.detach().float().cpu().reshape(-1, value.shape[-1]) for point, value in rows.items()}
    return Direction(held, {"at": at, **about})
