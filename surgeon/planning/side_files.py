"""Whose side files a result carries, and what its reshapes change in the config: a rule, never chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgeon.errors import MismatchError
from surgeon.planning.resolve import Node
from surgeon.planning.sources import Sources
from surgeon.space.expr import Edit, Expr, Merge, Model, Reshape, children
from surgeon.space.output import Recipe
from surgeon.store.checkpoint import Checkpoint


def files_model(recipe: Recipe, sources: Sources) -> Checkpoint:
    """The checkpoint whose config, tokenizer, dtypes and shard map the result has.

    A merge takes its base model's (without one, the first model's), a combination those of the first model named in it,
    an edit its operand's, a reshape those of its first part.
    """
    chosen = recipe.output.files_from if recipe.output.files_from is not None else recipe.expr
    found = _first(chosen, sources)
    if found is None:
        raise MismatchError("no full model is named whose config and tokenizer the result could carry")
    return found


def config_changes(root: Node, expr: Expr, sources: Sources) -> Mapping[str, Any]:
    """What reshapes on the way change in the config that the result would have without them, by key."""
    source = _first(expr, sources)
    before = source.config if source is not None else {}
    return {key: value for key, value in root.config.items() if key not in before or before[key] != value}


def _first(expr: Expr, sources: Sources) -> Checkpoint | None:
    if isinstance(expr, Model):
        source = sources[expr]
        return source if isinstance(source, Checkpoint) else None
    return next((found for child in _giving(expr) if (found := _first(child, sources)) is not None), None)


def _giving(expr: Expr) -> tuple[Expr, ...]:
    """The expressions whose files may be taken, in order."""
    if isinstance(expr, Merge) and expr.base_model is not None:
        return (expr.base_model,)
    if isinstance(expr, Edit):
        return (expr.of,)
    if isinstance(expr, Reshape):
        return (expr.parts[0].of,)
    return () if isinstance(expr, Model) else children(expr)
