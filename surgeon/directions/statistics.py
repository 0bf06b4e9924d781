"""Streamed statistics of a running model: one forward pass an example for all points, float64, memory that stays flat.

An example counts as one vector a point: its state at the position, or the mean of its states there. The first token,
where attention parks what it has no use for, is in no mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from surgeon.directions.examples import Example
from surgeon.directions.positions import Position, encoded_examples
from surgeon.errors import RunError
from surgeon.runtime.load import Loaded
from surgeon.runtime.points import capture
from surgeon.runtime.text import Encoded
from surgeon.space.fitter import Moments

#: Told how many examples of how many are done.
Listener = Callable[[int, int], None]


class Sums:
    """Sums over examples of their vectors, and where asked for of their products, at all points at once."""

    def __init__(self, points: int, width: int, second: bool = False) -> None:
        self._count = 0
        self._total = torch.zeros(points, width, dtype=torch.float64)
        self._products = torch.zeros(points, width, width, dtype=torch.float64) if second else None

    def add(self, vectors: Tensor) -> None:
        """One example's vectors, [points, d]."""
        self._count += 1
        self._total += vectors
        if self._products is not None:
            self._products.baddbmm_(vectors[:, :, None], vectors[:, None])

    def moments(self, points: Sequence[str]) -> dict[str, Moments]:
        """The moments at each point."""
        products = [None] * len(points) if self._products is None else list(self._products)
        return {
            point: Moments(self._count, total, product)
            for point, total, product in zip(points, self._total, products, strict=True)
        }


def measure(
    loaded: Loaded,
    examples: Sequence[Example],
    points: Sequence[str],
    position: str = "last",
    needs_second: bool = False,
    winsorise: float | None = None,
    listener: Listener | None = None,
) -> dict[str, Moments]:
    """The moments of the examples' states at each point.

    `winsorise` first clamps each state's entries to ± that quantile of their absolute values.
    """
    sums = Sums(len(points), loaded.anatomy.width, needs_second)
    for vectors in _vectors(loaded, examples, points, position, winsorise, listener):
        sums.add(vectors)
    return sums.moments(points)


def states(
    loaded: Loaded,
    examples: Sequence[Example],
    points: Sequence[str],
    position: str = "last",
    winsorise: float | None = None,
    listener: Listener | None = None,
) -> dict[str, Tensor]:
    """The examples' vectors themselves, float32 [n, d] by point: for held-out sets, since it grows with them."""
    kept = [vectors.float() for vectors in _vectors(loaded, examples, points, position, winsorise, listener)]
    stacked = torch.stack(kept, 1) if kept else torch.zeros(len(points), 0, loaded.anatomy.width)
    return dict(zip(points, stacked, strict=True))


@torch.no_grad()
def forwards(
    loaded: Loaded, encoded: Iterator[Encoded], points: Sequence[str]
) -> Iterator[tuple[Encoded, list[Tensor]]]:
    """Each example's states at the points, [tokens, d] where the model has them; the head is not run.

    RunError for states that are not finite.
    """
    with capture(loaded, points) as seen:
        for one in encoded:
            loaded.trunk(torch.tensor([one.ids], device=loaded.device), use_cache=False)
            yield one, [seen[point][0] for point in points]


def clamped(vectors: Tensor, quantile: float | None) -> Tensor:
    """Entries of each vector [n, d] clamped to ± that quantile of the vector's absolute values."""
    if quantile is None or quantile >= 1:
        return vectors
    rank = max(1, math.ceil(quantile * vectors.shape[-1]))
    limit = vectors.abs().kthvalue(rank, dim=-1, keepdim=True).values
    return vectors.clamp(-limit, limit)


def _vectors(
    loaded: Loaded,
    examples: Sequence[Example],
    points: Sequence[str],
    position: str,
    winsorise: float | None,
    listener: Listener | None,
) -> Iterator[Tensor]:
    """Each example's vectors, [points, d] float64 on the CPU."""
    where = Position.read(position)
    passes = forwards(loaded, encoded_examples(loaded, examples, where), points)
    for number, (encoded, found) in enumerate(passes, 1):
        tokens = where.tokens(encoded)
        yield pooled(found, tokens, winsorise)
        if listener is not None:
            listener(number, len(examples))


def pooled(found: Sequence[Tensor], tokens: range, winsorise: float | None = None) -> Tensor:
    """The mean over the tokens at each point, [points, d] float64 on the CPU. RunError where it is not finite."""
    at = slice(tokens.start, tokens.stop)
    chosen = clamped(torch.stack([state[at].cpu() for state in found]).double(), winsorise)
    vectors = chosen.mean(1)
    if not vectors.isfinite().all():
        raise RunError("the model's states are not finite", hint="run it in float32, or look for NaN in its weights")
    return vectors
