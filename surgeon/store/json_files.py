"""Reading JSON nobody vouches for: strict about encoding and duplicate keys, with errors that name the file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError

#: Bytes a JSON side file may have; an index of a million tensors takes about 100 MB.
LIMIT = 256 * 2**20


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `raw`; `what` names its source in errors."""
    hint = f"{what} is damaged or was not written by a model library; fetch it again from where it came from"
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise CheckpointError(f"{what}: JSON nested too deeply", hint=hint) from None
    except ValueError as error:
        raise CheckpointError(f"{what}: not valid JSON: {error}", hint=hint) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what}: expected a JSON object, found {type(value).__name__}", hint=hint)
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`."""
    try:
        size = path.stat().st_size
        if not path.is_file() or size > LIMIT:
            raise CheckpointError(f"{path}: no JSON file of at most {LIMIT} bytes", hint="remove or replace it")
        raw = path.read_bytes()
    except OSError as error:
        hint = "check that the file is there and may be read"
        raise CheckpointError(f"{path}: {error.strerror or error}", hint=hint) from None
    return parse_object(raw, str(path))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict; a key given twice is an error, since readers disagree on which one counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"duplicate key {counts.most_common(1)[0][0]!a}")
    return found
