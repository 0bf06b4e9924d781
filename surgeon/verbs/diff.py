"""`surgeon diff`: how two checkpoints differ, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.errors import RefusedError

if TYPE_CHECKING:
    from surgeon.engine.events import Listener
    from surgeon.measuring.diff_report import DiffReport


def diff(a: str | Path, b: str | Path, *, on_event: Listener | None = None) -> DiffReport:
    """Compare two checkpoints (folders, files or Hub ids): what changed, where, by how much and of what rank."""
    from surgeon.measuring.diff import compare
    from surgeon.store.checkpoint import Checkpoint
    from surgeon.store.source import open_source

    opened = []
    for ref in (a, b):
        source = open_source(str(ref), probe=True, hub=False if isinstance(ref, Path) else None)
        if not isinstance(source, Checkpoint):
            raise RefusedError(
                f"{ref} is an adapter, a difference without a model to compare",
                hint="apply it first: write a recipe with combine: base + adapter, then diff the base and the result",
            )
        opened.append(source)
    return compare(opened[0], opened[1], on_event)
