"""`surgeon export patch`: an edit as what it changes, applied and taken back bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import RefusedError, SurgeonError
from surgeon.space.expr import Expr, Model
from surgeon.space.output import Recipe
from surgeon.tensors import human_bytes

if TYPE_CHECKING:
    from surgeon.engine.events import Listener
    from surgeon.planning.plan import Plan
    from surgeon.ship.patch_file import Manifest
    from surgeon.store.checkpoint import Checkpoint

_RESOLVED = "surgeon/recipe.yaml"


@dataclass(frozen=True)
class PatchExport:
    """What an exported patch holds."""

    folder: Path
    base: str
    result: str
    factors: int
    replaced: int
    corrections: int
    reverts: bool
    size: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "folder": str(self.folder), "error": 0.0}

    def summary(self) -> str:
        """One line."""
        back = "" if self.reverts else "; it holds no way back"
        return (
            f"wrote {self.folder}: {human_bytes(self.size)}, {self.factors} tensors by factors, {self.replaced} whole; "
            f"base {self.base[:16]}…, result {self.result[:16]}…{back}"
        )


def export_patch(
    what: Expr | Recipe | str | Path,
    out: str | Path,
    *,
    base: Model | str | Path | None = None,
    dense: bool = False,
    undo: bool = True,
    device: str = "auto",
    overrides: Mapping[str, str] | None = None,
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> PatchExport:
    """Write what turns a base into a result, and back, as a patch bound to the hashes of both.

    `what` is a recipe or expression (it is applied into a folder beside OUT first, which is removed), a folder that
    surgeon wrote, or any checkpoint with `base`. Tensors that edits along directions or adapters change are held by
    their factors, others whole; `dense` holds all whole, as a folder whose root a server's `reload_weights` takes.
    `undo=False` leaves out the base's tensors of those held whole, and with them the way back.
    """
    from surgeon.engine.workspace import Workspace
    from surgeon.ship.patch_write import PatchWriter

    folder = Path(out).expanduser()
    with _sides(what, base, folder, device, overrides or {}, on_event) as (source, result, plan):
        inputs = [source.root, result.root]
        with Workspace(folder, "export patch", overwrite=overwrite, resume=False, inputs=inputs) as build:
            try:
                writer = PatchWriter(source, result, None if dense else plan, undo, on_event)
                manifest = writer.write(build.folder)
                size = sum(path.stat().st_size for path in build.folder.rglob("*") if path.is_file())
            except BaseException:
                build.discard()
                raise
            build.commit()
    return _report(folder, manifest, len(writer.replaced), size)


def _report(folder: Path, manifest: Manifest, replaced: int, size: int) -> PatchExport:
    corrections = sum(facts.corrections for facts in manifest.factors.values())
    return PatchExport(
        folder, manifest.base.hash, manifest.result.hash, len(manifest.factors), replaced, corrections,
        manifest.reverts, size,
    )  # fmt: skip


@contextmanager
def _sides(
    what: Expr | Recipe | str | Path, base: Model | str | Path | None, out: Path, device: str,
    overrides: Mapping[str, str], on_event: Listener | None,
) -> Iterator[tuple[Checkpoint, Checkpoint, Plan | None]]:  # fmt: skip
    """Base, result and the plan between them."""
    with checkpoint_of(what, out, device, overrides, on_event) as result:
        yield _opened(result, base, device, {} if is_recipe(what) else overrides)


def is_recipe(what: Expr | Recipe | str | Path) -> bool:
    """Whether it is to be applied, rather than a checkpoint that lies there."""
    return isinstance(what, Expr | Recipe) or str(what).endswith((".yaml", ".yml"))


@contextmanager
def checkpoint_of(
    what: Expr | Recipe | str | Path, out: Path, device: str, overrides: Mapping[str, str], on_event: Listener | None
) -> Iterator[Checkpoint]:
    """A checkpoint; the result of a recipe lies beside OUT for as long as it is needed."""
    from surgeon.store.checkpoint import Checkpoint, open_checkpoint
    from surgeon.store.files import disk_errors
    from surgeon.store.source import open_source
    from surgeon.verbs.apply import apply

    if not is_recipe(what):
        found = open_source(str(what), probe=True)
        if not isinstance(found, Checkpoint):
            raise RefusedError(f"{what} is an adapter: it is small as it is", hint="load it beside its base")
        yield found
        return
    with disk_errors("making room", out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        held = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    with held as folder:
        result = Path(folder) / "result"
        apply(what, result, device=device, overrides=overrides, on_event=on_event)
        yield open_checkpoint(result, str(result))


def _opened(
    result: Checkpoint, base: Model | str | Path | None, device: str, overrides: Mapping[str, str]
) -> tuple[Checkpoint, Checkpoint, Plan | None]:
    from surgeon.planning.sources import open_sources
    from surgeon.space.api import open as open_model
    from surgeon.store.checkpoint import Checkpoint
    from surgeon.verbs.export import base_of

    plan = _plan_of(result, device, overrides, needed=base is None)
    model = base if isinstance(base, Model) else open_model(base) if base is not None else None
    if model is None and plan is not None:
        model = base_of(plan.recipe.expr, plan.sources)
    if model is None:
        raise RefusedError("what the patch is to be applied to is not known", hint="name the base: --base MODEL")
    known = {} if plan is None else plan.sources
    source = known[model] if model in known else open_sources(model)[model]
    if not isinstance(source, Checkpoint):
        raise RefusedError(f"{model} is an adapter, and no base of a patch", origin=model.origin)
    return source, result, plan


def _plan_of(result: Checkpoint, device: str, overrides: Mapping[str, str], *, needed: bool) -> Plan | None:
    """The plan of a folder's own resolved recipe; None for a folder without, or whose inputs are gone."""
    from surgeon.verbs.plan import plan

    recipe = result.root / _RESOLVED
    if result.single_file or not recipe.is_file():
        return None
    try:
        return plan(recipe, device=device, overrides=overrides)
    except SurgeonError:
        if needed or overrides:
            raise
        return None
