"""What neutral text looks like inside a model: the sink, the pooled components, the mean at each point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.directions.examples import Example
from surgeon.directions.positions import Position, encoded_examples
from surgeon.directions.statistics import Listener, Sums, forwards, pooled
from surgeon.errors import RefusedError
from surgeon.runtime.load import Loaded
from surgeon.space.fitter import Moments

_ALL = Position("mean")


@dataclass(frozen=True, eq=False)
class Neutral:
    """One pass over neutral examples.

    `first` holds the first tokens' mean states by point; `products`, [d, d], sums x xᵀ of all other tokens at all
    points, each state at mean square one, as the norms before the readers see it; `moments` those at the position.
    """

    first: Mapping[str, Tensor]
    products: Tensor
    moments: Mapping[str, Moments]


def measure_neutral(
    loaded: Loaded,
    examples: Sequence[Example],
    position: str = "last",
    needs_second: bool = False,
    winsorise: float | None = None,
    listener: Listener | None = None,
) -> Neutral:
    """One forward pass an example at every point. A position in the response is read as the mean of all tokens."""
    if not examples:
        raise RefusedError("the neutral set is empty", hint="leave it out to use the one that comes with surgeon")
    points = loaded.anatomy.points()
    where = Position.read(position)
    where = _ALL if where.needs_response else where
    width = loaded.anatomy.width
    first, sums = Sums(len(points), width), Sums(len(points), width, needs_second)
    products = torch.zeros(width, width, dtype=torch.float64)
    for number, (encoded, found) in enumerate(forwards(loaded, encoded_examples(loaded, examples, _ALL), points), 1):
        first.add(pooled(found, range(1)))
        sums.add(pooled(found, where.tokens(encoded), winsorise))
        products += _products(found)
        if listener is not None:
            listener(number, len(examples))
    sinks = {point: moments.mean for point, moments in first.moments(points).items()}
    return Neutral(sinks, products, sums.moments(points))


def _products(found: Sequence[Tensor]) -> Tensor:
    """Σ x xᵀ over all tokens but the first and all points, each at mean square one, float64 [d, d] on the CPU."""
    states = torch.cat([state[1:].float().cpu() for state in found])
    unit = torch.nn.functional.normalize(states, dim=1) * states.shape[1] ** 0.5
    return (unit.T @ unit).double()
