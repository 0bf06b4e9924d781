"""A transformers model of an output, of any checkpoint, or of what a recipe gives."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import RefusedError
from surgeon.space.expr import Expr
from surgeon.space.output import Recipe

if TYPE_CHECKING:
    from surgeon.engine.events import Listener


def load(
    what: Expr | Recipe | str | Path,
    *,
    dtype: str | None = None,
    device_map: Any = None,
    offload_folder: str | Path | None = None,
    device: str = "auto",
    memory: int | str | None = None,
    threads: int | None = None,
    overrides: Mapping[str, str] | None = None,
    on_event: Listener | None = None,
) -> Any:
    """A transformers model: of a folder or Hub id, or of a recipe (a .yaml file, a `Recipe`, an expression).

    `dtype` is what the model runs in (by default what the checkpoint is, or would be, written in); `device_map` and
    `offload_folder` are as in `from_pretrained`. What a recipe gives is put straight into its base where only numbers
    change; another shape or config goes through a temporary folder, which is removed with the model. No code that
    comes with a checkpoint is run.
    """
    from surgeon.measuring.in_memory import only_numbers
    from surgeon.runtime.load import load_model
    from surgeon.verbs.apply import apply
    from surgeon.verbs.apply_to import apply_to
    from surgeon.verbs.plan import plan

    placing = {"device_map": device_map, "offload_folder": offload_folder}
    if isinstance(what, str | Path) and not str(what).endswith((".yaml", ".yml")):
        return load_model(_folder(what), dtype, **placing)
    asked: dict[str, Any] = {"device": device, "memory": memory, "threads": threads, "overrides": overrides}
    planned = plan(what, **asked)
    if only_numbers(planned):
        model = load_model(planned.files_from.root, dtype or _written(planned.recipe.output.dtype), **placing)
        apply_to(model, what, on_event=on_event, **asked)
        return model
    folder = Path(tempfile.mkdtemp(prefix="surgeon-"))
    try:
        apply(what, folder / "model", on_event=on_event, **asked)
        model = load_model(folder / "model", dtype, **placing)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return model


def _folder(ref: str | Path) -> Path:
    from surgeon.store.adapter import CONFIG
    from surgeon.store.source import locate

    root, _ = locate(str(ref), probe=True)
    if (root / CONFIG).exists():
        hint = "surgeon.load(surgeon.open(BASE) + surgeon.open(ADAPTER)), or peft's PeftModel on a loaded base"
        raise RefusedError(f"{ref} is an adapter, and no model by itself", hint=hint)
    return root


def _written(dtype: str | None) -> str | None:
    """The dtype an output names, as torch spells it."""
    from surgeon.tensors import FLOATS

    return None if dtype is None else FLOATS[dtype]
