"""`surgeon diff`: how two checkpoints differ, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.errors import RefusedError

if TYPE_CHECKING:
    from surgeon.engine.events import Listener
    from surgeon.measuring.diff_report import DiffReport
    from surgeon.store.checkpoint import Checkpoint


def diff(a: str | Path, b: str | Path, *, on_event: Listener | None = None) -> DiffReport:
    """Compare two checkpoints (folders, files or Hub ids): what changed, where, by how much and of what rank."""
    from surgeon.measuring.diff import compare

    return compare(_opened(a), _opened(b), on_event)


def _opened(ref: str | Path) -> Checkpoint:
    from surgeon.store.adapter import Adapter
    from surgeon.store.source import open_source

    source = open_source(str(ref), probe=True, hub=False if isinstance(ref, Path) else None)
    if isinstance(source, Adapter):
        raise RefusedError(
            f"{ref} is an adapter, a difference without a model to compare",
            hint="apply it first: write a recipe with combine: base + adapter, then diff the base and the result",
        )
    return source
