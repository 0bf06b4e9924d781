"""`surgeon apply`: run a recipe into a new checkpoint folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.verbs._what import asked, options

if TYPE_CHECKING:
    from surgeon.engine.events import Listener
    from surgeon.engine.receipt import Receipt
    from surgeon.space.expr import Expr
    from surgeon.space.output import Recipe


def apply(
    what: Expr | Recipe | str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    shard_size: int | str | None = None,
    files_from: Expr | None = None,
    device: str = "auto",
    memory: int | str | None = None,
    threads: int | None = None,
    block: int | str = 1 << 21,
    overrides: Mapping[str, str] | None = None,
    resume: bool | None = None,
    overwrite: bool = False,
    allow_nan: bool = False,
    on_event: Listener | None = None,
) -> Receipt:
    """Run a recipe (a file, a `Recipe` or an expression) into OUT and return its receipt.

    `dtype` and `shard_size` win over the recipe's output; `memory` is a promise in bytes (or '4GB'); `block` is the
    size of the pieces tensors are computed in, which never changes the bytes written. `resume=True` insists on going
    on with an interrupted build, False starts afresh, None does what fits. Raises RefusedError before anything is read,
    RunError while running; OUT then does not exist, or is what it was.
    """
    from surgeon.engine.build import build
    from surgeon.planning.plan import build as build_plan
    from surgeon.recipe import dump_recipe

    request = asked(what, dtype=dtype, shard_size=shard_size, files_from=files_from, overrides=overrides)
    plan = build_plan(request.recipe, options(device, memory, threads, block, allow_nan))
    return build(
        plan,
        Path(out).expanduser(),
        given=request.given,
        resolved=dump_recipe(request.recipe, schema=False),
        overwrite=overwrite,
        resume=resume,
        listener=on_event,
    )
