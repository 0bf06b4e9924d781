"""Whose side files a result carries: a rule, never chance."""

from __future__ import annotations

from surgeon.errors import MismatchError
from surgeon.planning.sources import Sources
from surgeon.space.expr import Expr, Merge, Model, children
from surgeon.space.output import Recipe
from surgeon.store.checkpoint import Checkpoint


def files_model(recipe: Recipe, sources: Sources) -> Checkpoint:
    """The checkpoint whose config, tokenizer, dtypes and shard map the result has.

    A merge takes its base model's (without one, the first model's), a combination those of the first model named in it.
    """
    chosen = recipe.output.files_from if recipe.output.files_from is not None else recipe.expr
    found = _first(chosen, sources)
    if found is None:
        raise MismatchError("no full model is named whose config and tokenizer the result could carry")
    return found


def _first(expr: Expr, sources: Sources) -> Checkpoint | None:
    if isinstance(expr, Model):
        source = sources[expr]
        return source if isinstance(source, Checkpoint) else None
    if isinstance(expr, Merge) and expr.base_model is not None:
        return _first(expr.base_model, sources)
    return next((found for child in children(expr) if (found := _first(child, sources)) is not None), None)
