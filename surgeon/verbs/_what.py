"""What verbs accept as a recipe: a file, a recipe, or an expression; and the options they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from surgeon.errors import RefusedError
from surgeon.planning.options import Options
from surgeon.space.expr import Expr
from surgeon.space.output import Recipe
from surgeon.tensors import parse_bytes, stored_dtype


@dataclass(frozen=True)
class Asked:
    """A recipe to run, the text it was given as (None for an expression), and notes on how it was read."""

    recipe: Recipe
    given: str | None
    notes: tuple[str, ...] = ()


def asked(
    what: Expr | Recipe | str | Path,
    *,
    dtype: str | None = None,
    shard_size: int | str | None = None,
    files_from: Expr | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Asked:
    """Load what was asked for and lay the arguments over its output settings."""
    if isinstance(what, Expr):
        found = Asked(Recipe(what), None)
    elif isinstance(what, Recipe):
        found = Asked(what, None)
    else:
        from surgeon.recipe import load

        loaded = load(Path(what), overrides or {})
        found = Asked(loaded.recipe, Path(what).read_text(encoding="utf-8-sig"), loaded.notes)
    changes: dict[str, object] = {}
    try:
        changes |= {} if dtype is None else {"dtype": stored_dtype(dtype)}
        changes |= {} if shard_size is None else {"shard_size": size_in_bytes(shard_size)}
    except ValueError as error:
        raise RefusedError(str(error)) from None
    changes |= {} if files_from is None else {"files_from": files_from}
    output = replace(found.recipe.output, **changes)
    return replace(found, recipe=replace(found.recipe, output=output))


def options(device: str, memory: int | str | None, threads: int | None, block: int | str, allow_nan: bool) -> Options:
    """Run options from what users write. RefusedError when a figure makes no sense or the device is not there."""
    if device != "auto":
        from surgeon.engine.devices import choose

        choose(device)
    try:
        budget = None if memory is None else size_in_bytes(memory)
        block_size = size_in_bytes(block)
    except ValueError as error:
        raise RefusedError(str(error)) from None
    if threads is not None and threads < 1:
        raise RefusedError(f"{threads} threads cannot work", hint="give 1 or more")
    return Options(device, budget, threads, block_size, allow_nan)


def size_in_bytes(size: int | str) -> int:
    """A number of bytes, or text such as 4GB. ValueError for anything else, zero and less included."""
    found = size if isinstance(size, int) else parse_bytes(size)
    if found <= 0:
        raise ValueError(f"{size} is not a positive size")
    return found
