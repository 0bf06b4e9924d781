"""A folder held against the rules of every server: what each does with it, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.measuring.serving.config_faults import config_faults
from surgeon.measuring.serving.file_faults import file_faults
from surgeon.measuring.serving.folder import read_folder
from surgeon.measuring.serving.rules import SERVERS, Reading, read_by
from surgeon.measuring.verdict import Verdict, mismatch

CLAIM = "a folder that every server reads as it is meant"


@dataclass(frozen=True)
class StaticCheck:
    """What each server does with a folder, and the verdict over it."""

    readings: tuple[Reading, ...]
    verdict: Verdict


def check_folder(root: Path, source: Mapping[str, Any] | None = None, *, wanted: bool = False) -> StaticCheck:
    """Check a folder by rules alone, from headers and side files (and the head's bytes where it is tied).

    `source` are the parsed config.json and tokenizer_config.json of what it was made from, by name; `wanted` says that
    it was made from something, so that a missing source leaves something open.
    """
    folder = read_folder(root)
    readings = tuple(read_by(rules, folder) for rules in SERVERS)
    findings = [*file_faults(folder), *config_faults(folder, source, wanted)]
    if not any(finding.kind == "mismatch" for finding in findings):
        findings += [mismatch(one.server, one.detail) for one in readings if one.verdict != "loads"]
    proof = f"holds {len(folder.meant)} tensors, and all servers above read them from {_files(len(folder.files))}"
    table = {one.server: {"verdict": one.verdict, "files": list(one.files), "detail": one.detail} for one in readings}
    return StaticCheck(readings, Verdict(str(root), CLAIM, proof, tuple(findings), {"servers": table}))


def _files(count: int) -> str:
    return "one file" if count == 1 else f"{count} files"
