"""Start-up check: no other installed distribution owns the import name `surgeon`.

Reads the file lists of the installed distributions as bytes: importlib.metadata would parse them all, which takes
longer than the rest of the start.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from surgeon import RefusedError

OURS = "model-surgeon"


def check(path: Iterable[str] | None = None) -> None:
    """Refuse a mixed installation, naming both distributions."""
    records = (record for entry in path or sys.path for record in Path(entry or ".").glob("*.dist-info/RECORD"))
    owners = {record.parent.stem.rpartition("-")[0] for record in records if _holds_surgeon(record)}
    others = sorted({owner.replace("_", "-").lower() for owner in owners} - {OURS})
    if others:
        raise RefusedError(
            f"{' and '.join(others)} and {OURS} both install the import name 'surgeon', and their files are mixed",
            hint=f"pip uninstall --yes {' '.join(others)} {OURS} && pip install {OURS}",
        )


def _holds_surgeon(record: Path) -> bool:
    try:
        return b"\nsurgeon/" in b"\n" + record.read_bytes()
    except OSError:
        return False
