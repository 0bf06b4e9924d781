"""Opening what an expression names: each checkpoint and adapter once, headers only."""

from __future__ import annotations

from collections.abc import Mapping

from surgeon.errors import CheckpointError, SurgeonError
from surgeon.space.expr import Expr, Model, walk
from surgeon.store.adapter import Adapter
from surgeon.store.source import Source, open_source

Sources = Mapping[Model, Source]


def open_sources(*exprs: Expr) -> Sources:
    """Open every model the expressions name. Errors carry the recipe's place; models not readable are told at once."""
    found: dict[Model, Source] = {}
    unreadable: dict[Model, CheckpointError] = {}
    for expr in exprs:
        for node in walk(expr):
            if isinstance(node, Model) and node not in found and node not in unreadable:
                try:
                    found[node] = open_source(node.ref, probe=node.probe)
                except CheckpointError as error:
                    error.origin = error.origin or node.origin
                    unreadable[node] = error
                except SurgeonError as error:
                    error.origin = error.origin or node.origin
                    raise
    if unreadable:
        raise _together(tuple(unreadable.values()))
    return found


def _together(errors: tuple[CheckpointError, ...]) -> CheckpointError:
    """One error for all models that cannot be opened."""
    first, *others = errors
    if not others:
        return first
    listed = "".join(f"\n    {f'{error.origin}: ' if error.origin else ''}{error.message}" for error in errors)
    return CheckpointError(f"{len(errors)} models cannot be opened:{listed}", origin=first.origin, hint=first.hint)


def is_adapter(source: Source) -> bool:
    """Whether the source is a difference (mass 0)."""
    return isinstance(source, Adapter)
