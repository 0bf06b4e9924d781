"""`surgeon patch`: a patch applied to its base, or taken back from its result, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import CheckpointError, RefusedError
from surgeon.tensors import human_bytes

if TYPE_CHECKING:
    from surgeon.engine.events import Listener
    from surgeon.ship.patch_file import Side


@dataclass(frozen=True)
class PatchReport:
    """What a patch was turned into: the folder and the hash of its tensors."""

    folder: Path
    side: str
    hash: str
    factors: int
    size: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"folder": str(self.folder), "is": self.side, "hash": self.hash, "factors": self.factors}

    def summary(self) -> str:
        """One line."""
        return f"wrote {self.folder}: {human_bytes(self.size)}, bit for bit the {self.side} {self.hash[:16]}…"


def apply_patch(
    base: str | Path, patch: str | Path, out: str | Path, *, threads: int | None = None, overwrite: bool = False,
    on_event: Listener | None = None,
) -> PatchReport:  # fmt: skip
    """Write the result of a patch from its base: the bytes that the patch was made of.

    Every byte of the base is hashed on the way: MismatchError names a base or a tensor that is another, and leaves
    nothing behind.
    """
    return _patched(base, patch, out, "result", threads, overwrite, on_event)


def revert_patch(
    result: str | Path, patch: str | Path, back: str | Path, *, threads: int | None = None, overwrite: bool = False,
    on_event: Listener | None = None,
) -> PatchReport:  # fmt: skip
    """Write the base of a patch from its result, likewise. RefusedError for a patch that holds no way back."""
    return _patched(result, patch, back, "base", threads, overwrite, on_event)


def _patched(
    ref: str | Path, patch: str | Path, out: str | Path, towards: Side, threads: int | None, overwrite: bool,
    on_event: Listener | None,
) -> PatchReport:  # fmt: skip
    from surgeon.engine.workspace import Workspace
    from surgeon.planning.options import Options
    from surgeon.ship.patch_file import open_patch
    from surgeon.ship.patching import Patching
    from surgeon.store.checkpoint import Checkpoint
    from surgeon.store.source import open_source

    if threads is not None and threads < 1:
        raise RefusedError(f"{threads} threads cannot work", hint="give 1 or more")
    source, opened = open_source(str(ref), probe=True), open_patch(Path(patch).expanduser())
    if not isinstance(source, Checkpoint):
        raise CheckpointError(f"{ref} is an adapter; a patch is of checkpoints")
    folder, run = Path(out).expanduser(), Patching(opened, source, towards, on_event)
    key = f"patch {opened.manifest.base.hash} {opened.manifest.result.hash} {towards}"
    inputs = [source.root, opened.root]
    with Workspace(folder, key, overwrite=overwrite, resume=False, inputs=inputs) as workspace:
        try:
            run.check()
            run.write(workspace.folder, Options(threads=threads).workers)
        except BaseException:
            workspace.discard()
            raise
        workspace.commit()
    size = sum(facts.size for facts in run.wanted.files.values())
    return PatchReport(folder, towards, run.wanted.hash, len(opened.manifest.factors), size)
