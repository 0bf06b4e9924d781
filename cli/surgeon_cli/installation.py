"""Start-up check: no other installed distribution owns the import name `surgeon`.

Reads the file lists of the installed distributions as bytes: importlib.metadata would parse them all, which takes
longer than the rest of the start.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from surgeon import RefusedError

OURS = "model-surgeon"


def check(path: Iterable[str] | None = None) -> None:
    """Refuse a mixed installation, naming both distributions."""
    others = sorted(owners(sys.path if path is None else path) - {OURS})
    if others:
        names = " ".join(others)
        raise RefusedError(
            f"{' and '.join(others)} and {OURS} both install the import name 'surgeon', and their files are mixed",
            hint=f"pip uninstall --yes {names} {OURS} && pip install {OURS}",
        )


def owners(path: Iterable[str]) -> set[str]:
    """Names of the distributions on a path whose list of files holds the package `surgeon`."""
    records = (record for entry in path for record in Path(entry or ".").glob("*.dist-info/RECORD"))
    return {_distribution(record) for record in records if _holds_surgeon(record)}


def _holds_surgeon(record: Path) -> bool:
    try:
        files = b"\n" + record.read_bytes()
    except OSError:
        return False
    return b"\nsurgeon/" in files


def _distribution(record: Path) -> str:
    return record.parent.name.removesuffix(".dist-info").rpartition("-")[0].replace("_", "-").lower()
