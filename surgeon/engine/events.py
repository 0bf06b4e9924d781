"""What the engine tells while it works; the command line draws it, the engine imports no screen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """So much of a stage is done, in `unit`s."""

    stage: str
    done: int
    total: int
    unit: str = "bytes"
    detail: str = ""


Listener = Callable[[Progress], None]
