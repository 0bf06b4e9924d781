"""`surgeon plan`: what a recipe would do, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.errors import RefusedError
from surgeon.planning.options import Options
from surgeon.space.expr import Expr
from surgeon.space.output import Recipe
from surgeon.tensors import parse_bytes, stored_dtype

if TYPE_CHECKING:
    from surgeon.planning.plan import Plan


def plan(
    what: Expr | Recipe | str | Path,
    *,
    dtype: str | None = None,
    shard_size: int | str | None = None,
    files_from: Expr | None = None,
    device: str = "auto",
    memory: int | str | None = None,
    threads: int | None = None,
    block: int | str = 1 << 21,
    allow_nan: bool = False,
    any_model: bool = False,
    overrides: Mapping[str, str] | None = None,
) -> Plan:
    """Plan a recipe (a file, a `Recipe` or an expression): every tensor, bytes, peak memory. No tensor is read.

    `dtype`, `shard_size` and `files_from` win over the recipe's output; `memory` is a promise in bytes (or '4GB');
    `block` is the size of the pieces tensors are computed in, which never changes the bytes written. `any_model` lets
    a direction be used on another model than it was measured on. Raises
    RefusedError for whatever would stop `apply` before it reads.
    """
    from surgeon.planning.plan import build

    recipe, notes = _recipe(what, overrides or {})
    try:
        asked = {
            "dtype": None if dtype is None else stored_dtype(dtype),
            "shard_size": None if shard_size is None else parse_bytes(str(shard_size)),
            "files_from": files_from,
        }
        budget = None if memory is None else parse_bytes(str(memory))
        options = Options(device, budget, threads, parse_bytes(str(block)), allow_nan, any_model)
    except ValueError as error:
        raise RefusedError(str(error)) from None
    _check_workers(device, threads)
    output = replace(recipe.output, **{name: value for name, value in asked.items() if value is not None})
    planned = build(replace(recipe, output=output), options)
    return replace(planned, warnings=(*notes, *planned.warnings))


def _recipe(what: Expr | Recipe | str | Path, overrides: Mapping[str, str]) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe in what was given, and notes on how it was read."""
    if isinstance(what, Expr | Recipe):
        return (Recipe(what) if isinstance(what, Expr) else what), ()
    from surgeon.recipe import load

    loaded = load(Path(what), overrides)
    return loaded.recipe, loaded.notes


def _check_workers(device: str, threads: int | None) -> None:
    if device != "auto":
        from surgeon.engine.devices import choose

        choose(device)
    if threads is not None and threads < 1:
        raise RefusedError(f"{threads} threads cannot work", hint="give 1 or more")
