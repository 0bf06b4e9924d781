"""What is left of a direction in the residual stream of a running model, point by point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from surgeon.artifacts.direction import Direction
from surgeon.runtime.load import Loaded
from surgeon.runtime.points import capture
from surgeon.runtime.text import Example, encode
from surgeon.space.edit_kernels import orthonormal


@dataclass(frozen=True)
class Residual:
    """max|Rᵀh| / max|h| over all tokens at one residual point."""

    point: str
    ratio: float
    largest: float

    def to_dict(self) -> dict[str, float | str]:
        """JSON-ready."""
        return {"point": self.point, "ratio": self.ratio, "largest_state": self.largest}


@torch.no_grad()
def residual(
    loaded: Loaded, direction: Direction, examples: Iterable[Example] | None = None, at: str = "",
    ids: Sequence[Sequence[int]] = (),
) -> tuple[Residual, ...]:  # fmt: skip
    """Run the model on examples, or on token ids, and look at every residual point.

    `at` names one point's rows, used everywhere; with ``own`` each point is held against its own rows.
    """
    points = loaded.anatomy.points()
    at = at or direction.at
    rows = {p: direction.rows(p if at.startswith("own") else at) for p in points if _holds(direction, p, at)}
    columns = {point: orthonormal(value).to(loaded.device) for point, value in rows.items()}
    along = dict.fromkeys(columns, 0.0)
    largest = dict.fromkeys(columns, 0.0)
    batches = [*ids, *(encode(loaded, example).ids for example in examples or ())]
    for one in batches:
        with capture(loaded, tuple(columns)) as states:
            loaded.trunk(torch.tensor([list(one)], device=loaded.device), use_cache=False)
        for point, frame in columns.items():
            state = states[point][0].double()
            along[point] = max(along[point], float((state @ frame.to(state.device)).abs().max()))
            largest[point] = max(largest[point], float(state.abs().max()))
    return tuple(Residual(p, along[p] / max(largest[p], 1e-300), largest[p]) for p in columns)


def _holds(direction: Direction, point: str, at: str) -> bool:
    return not at.startswith("own") or point in direction.tensors
