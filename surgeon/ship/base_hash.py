"""What an export stands on: the base by reference, revision and hash, as its receipt names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import torch

from surgeon.engine.events import Listener, Progress
from surgeon.engine.reading import DiskReader
from surgeon.ship.image import content_hash
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.files import Files
from surgeon.version import VERSION

#: A receipt's name in an exported folder; beside an exported file it is the file's name and this.
EXPORTED = "surgeon.json"


def model_hash(checkpoint: Checkpoint, listener: Listener | None) -> str:
    """The `content_hash` of a checkpoint, every byte read once."""
    total, done, found = sum(one.spec.nbytes for one in checkpoint.tensors.values()), 0, {}
    with closing(Files()) as files:
        reader = DiskReader(files, torch.device("cpu"))
        for name, stored in checkpoint.tensors.items():
            reader.begin()
            found[name] = stored.spec, reader.digest_of(stored)
            done += stored.spec.nbytes
            if listener is not None:
                listener(Progress("hash", done, total, "bytes"))
    return content_hash(found)


def export_receipt(kind: str, base: Checkpoint | None, listener: Listener | None, facts: Mapping[str, Any]) -> bytes:
    """The receipt beside an export: what it is, its base by hash, the error it introduces (in `facts`)."""
    about: dict[str, Any] = {"version": 1, "export": kind, "made_with": VERSION}
    if base is not None:
        about["base"] = {"ref": base.ref, "revision": base.revision, "hash": model_hash(base, listener)}
    return (json.dumps({**about, **facts}, indent=1, ensure_ascii=False) + "\n").encode()
