"""`surgeon apply`: run a recipe into a new checkpoint folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.verbs.plan import plan

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
    dequantize: bool = False,
    device: str = "auto",
    memory: int | str | None = None,
    threads: int | None = None,
    block: int | str = 1 << 21,
    allow_nan: bool = False,
    any_model: bool = False,
    overrides: Mapping[str, str] | None = None,
    resume: bool | None = None,
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> Receipt:
    """Run a recipe (a file, a `Recipe` or an expression) into OUT and return its receipt.

    What stands before `resume` is as for `plan`. `resume=True` insists on going on with an interrupted build, False
    starts afresh, None does what fits. Raises RefusedError before anything is read, RunError while running; OUT then
    does not exist, or is what it was.
    """
    from surgeon.engine.build import build
    from surgeon.recipe import dump_recipe
    from surgeon.verbs.stages import stages, with_artifacts

    folder = Path(out).expanduser()
    asked: dict[str, Any] = {
        "dtype": dtype, "shard_size": shard_size, "files_from": files_from, "dequantize": dequantize,
        "device": device, "memory": memory, "threads": threads, "block": block, "allow_nan": allow_nan,
        "any_model": any_model,
    }  # fmt: skip
    planned = plan(what, overrides=overrides, **asked)
    given = Path(what).read_text(encoding="utf-8-sig") if isinstance(what, str | Path) else None
    with stages(planned, folder, on_event, overwrite=overwrite, resume=resume) as (recipe, kept):
        if planned.fits:
            # What was measured is what went on; the build itself need not have begun.
            planned, resume = plan(recipe, **asked), None if resume else resume
        named, artifacts = with_artifacts(planned.recipe, kept)
        return build(
            planned,
            folder,
            given=given,
            resolved=dump_recipe(named, schema=False),
            artifacts=artifacts,
            overwrite=overwrite,
            resume=resume,
            listener=on_event,
        )
