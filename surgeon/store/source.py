"""Opening what a reference names: a checkpoint or an adapter."""

from __future__ import annotations

from surgeon.store.adapter import CONFIG, WEIGHTS, Adapter, open_adapter
from surgeon.store.checkpoint import Checkpoint, open_checkpoint
from surgeon.store.reference import locate

Source = Checkpoint | Adapter


def open_source(ref: str, *, hub: bool | None = None, probe: bool = False) -> Source:
    """The checkpoint or adapter of `ref`; what `hub` and `probe` mean, `locate` says."""
    root, revision = locate(ref, hub=hub, probe=probe)
    if root.name == WEIGHTS and (root.parent / CONFIG).exists():
        root = root.parent
    if (root / CONFIG).exists():
        return open_adapter(root, ref, revision)
    return open_checkpoint(root, ref, revision)
