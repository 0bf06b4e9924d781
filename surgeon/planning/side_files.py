"""Whose side files a result carries, and what its reshapes change in the config: a rule, never chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from surgeon.anatomy.chat_templates import template, template_files
from surgeon.errors import MismatchError, RefusedError
from surgeon.planning.resolve import Node, Resolver
from surgeon.planning.sources import Sources
from surgeon.space.expr import Edit, Expr, Merge, Model, Reshape, children
from surgeon.space.output import Recipe
from surgeon.space.sides import Content, Sides, differences, json_bytes
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


def config_changes(root: Node, recipe: Recipe, resolver: Resolver) -> Mapping[str, Any]:
    """What reshapes on the way change in the config that the result would have without them, by key."""
    found: dict[str, Any] = {}
    for expr, node in _described(root, recipe, resolver):
        source = _first(expr, resolver.sources)
        before = source.config if source is not None else {}
        found |= {key: value for key, value in node.config.items() if key not in before or before[key] != value}
    return found


def file_changes(root: Node, recipe: Recipe, resolver: Resolver) -> Mapping[str, Content | None]:
    """What the files are that the result has otherwise than its `files_model`: their content, None for left out."""
    found: dict[str, Content | None] = {}
    for expr, node in _described(root, recipe, resolver):
        source = _first(expr, resolver.sources)
        found |= differences(Sides.of(source), node.sides) if source is not None else {}
    if recipe.output.chat_template:
        after = Sides.of(files_model(recipe, resolver.sources)).changed(found)
        found |= _template_files(after, recipe, resolver.sources)
    return found


def _described(root: Node, recipe: Recipe, resolver: Resolver) -> Iterator[tuple[Expr, Node]]:
    """What the side files are those of, then what is made; usually one and the same."""
    if recipe.output.files_from is not None:
        yield recipe.output.files_from, resolver(recipe.output.files_from)
    yield recipe.expr, root


def _template_files(sides: Sides, recipe: Recipe, sources: Sources) -> Iterator[tuple[str, Content]]:
    """The files that hold the chat template asked for."""
    checkpoints = (source for source in sources.values() if isinstance(source, Checkpoint))
    templates = (text for source in checkpoints if (text := Sides.of(source).chat_template) is not None)
    try:
        text = template(recipe.output.chat_template or "", templates)
    except RefusedError as error:
        error.origin = recipe.output.origin
        raise
    config = sides.json("tokenizer_config.json") if "tokenizer_config.json" in sides.files else None
    for name, value in template_files(text, config, "chat_template.jinja" in sides.files).items():
        yield name, value.encode() if isinstance(value, str) else json_bytes(value)


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
