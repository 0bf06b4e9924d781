"""What no direction should hold: the attention sink and the main components of neutral states.

An edit removes what lies along its direction from every token, the first one's huge state included; a direction that
holds a little of the sink, or of what all text has, breaks the model for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.errors import RefusedError

#: Components that carry less than this share of the first are rounding.
_SMALLEST = 1e-9


@dataclass(frozen=True, eq=False)
class Guard:
    """Orthonormal rows [1 + components, d] float64: the sink first, then the components by size.

    `shares` holds each component's share of the neutral states' squared norm, the sink projected out.
    """

    basis: Tensor
    shares: tuple[float, ...]


def guard_basis(first: Mapping[str, Tensor], products: Tensor, components: int = 16) -> Guard:
    """The guard of a model, from its first tokens' mean states [d] by point and the pooled products [d, d] of others.

    The sink is the main axis of the first tokens' states as they are: the points where they are huge decide.
    """
    width = products.shape[0]
    if components + 1 >= width:
        hint = f"the stream is {width} wide; 16 is usual from 500 on"
        raise RefusedError(f"components: {components} would leave nothing of a direction", hint=hint)
    sinks = torch.stack([state.double() for state in first.values()])
    sink = torch.linalg.svd(sinks, full_matrices=False)[2][:1]
    rest = torch.eye(width, dtype=torch.float64) - sink.T @ sink
    values, vectors = torch.linalg.eigh(rest @ products.double() @ rest)
    kept = [at for at in range(width - 1, width - 1 - components, -1) if values[at] > _SMALLEST * values[-1]]
    basis = torch.linalg.qr(torch.cat([sink, vectors[:, kept].T]).T)[0].T
    return Guard(basis, tuple((values[kept] / values.sum()).tolist()))


def guard(rows: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """Unit rows [k, d] with the span of the basis projected out, and the share of their squared norm that went with it.

    RefusedError where nothing is left of a row.
    """
    wide = rows.double().reshape(-1, basis.shape[1])
    left = wide
    for _ in range(2):  # a second pass takes what rounding left of the first
        left = left - (left @ basis.T) @ basis
    before, after = wide.square().sum(1), left.square().sum(1)
    if (after <= 1e-12 * before).any():
        hint = "the two sets differ in nothing particular; guard fewer components, or none with guard: false"
        raise RefusedError("a fitted direction lies wholly in what the guard takes out", hint=hint)
    return left / after.sqrt()[:, None], share(wide, basis)


def share(rows: Tensor, basis: Tensor) -> float:
    """The share of the squared norm of rows [k, d] that lies in the span of an orthonormal basis."""
    wide = rows.double().reshape(-1, basis.shape[1])
    return float((wide @ basis.T).square().sum() / wide.square().sum())
