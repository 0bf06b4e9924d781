"""Opening what an expression names: each checkpoint and adapter once, headers only."""

from __future__ import annotations

from collections.abc import Mapping

from surgeon.errors import SurgeonError
from surgeon.space.expr import Expr, Model, walk
from surgeon.store.adapter import Adapter
from surgeon.store.source import Source, open_source

Sources = Mapping[Model, Source]


def open_sources(*exprs: Expr) -> Sources:
    """Open every model the expressions name. Errors carry the recipe's place."""
    found: dict[Model, Source] = {}
    for expr in exprs:
        for node in walk(expr):
            if isinstance(node, Model) and node not in found:
                try:
                    found[node] = open_source(node.ref, probe=node.probe)
                except SurgeonError as error:
                    error.origin = error.origin or node.origin
                    raise
    return found


def is_adapter(source: Source) -> bool:
    """Whether the source is a difference (mass 0)."""
    return isinstance(source, Adapter)
