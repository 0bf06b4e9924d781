"""Every kind of artifact, by the word that its file holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from surgeon.artifacts.artifact import Artifact, kind_of
from surgeon.artifacts.coefficients import Coefficients
from surgeon.artifacts.direction import Direction
from surgeon.artifacts.fisher import Fisher
from surgeon.artifacts.gram import Gram, MergedGram
from surgeon.errors import CheckpointError, nearest

KINDS: Mapping[str, type[Artifact]] = {one.kind: one for one in (Coefficients, Direction, Gram, MergedGram, Fisher)}


def open_artifact(path: Path) -> Artifact:
    """The artifact in a file, of whatever kind. CheckpointError where it is none that this version knows."""
    kind = kind_of(path)
    if kind not in KINDS:
        raise CheckpointError(f"{path} holds {kind!r}, which is no artifact known", hint=nearest(kind, KINDS))
    return KINDS[kind].load(path)
