"""`surgeon plan`: what a recipe would do, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.verbs._what import asked, options

if TYPE_CHECKING:
    from surgeon.planning.plan import Plan
    from surgeon.space.expr import Expr
    from surgeon.space.output import Recipe


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
    overrides: Mapping[str, str] | None = None,
) -> Plan:
    """Plan a recipe (a file, a `Recipe` or an expression): every tensor, bytes, peak memory. No tensor is read.

    Raises RefusedError for whatever would stop `apply` before it reads.
    """
    from surgeon.planning.plan import build

    request = asked(what, dtype=dtype, shard_size=shard_size, files_from=files_from, overrides=overrides)
    planned = build(request.recipe, options(device, memory, threads, block, allow_nan=False))
    return replace(planned, warnings=(*request.notes, *planned.warnings))
