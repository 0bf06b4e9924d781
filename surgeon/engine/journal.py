"""What a build has finished: an append-only file of checksummed lines that survives being cut off anywhere.

The first line holds the build's key, each further line one finished tensor. A line is a checksum, a space and JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from surgeon.store.files import disk_errors, sync_path, write_all


@dataclass(frozen=True)
class Record:
    """A finished tensor: blake3 of its written bytes, and of each input tensor (by its place on disk) read for it.

    `left` is, where a zero is promised, ‖QᵀW‖ before and in the bytes written; `error`, of a weight that is quantised
    again, ‖Ŵ − W‖/‖W‖ of what will be read.
    """

    tensor: str
    digest: str
    inputs: dict[str, str]
    left: tuple[float, float] | None = None
    error: float | None = None


class Journal:
    """An open journal, made by `create` or `open`; for one thread."""

    def __init__(self, path: Path, file: FileIO, key: str, end: int = 0, records: Iterable[Record] = ()) -> None:
        self.key = key
        self._path = path
        self._file = file
        self._end = end
        self._records = {record.tensor: record for record in records}

    @classmethod
    def create(cls, path: Path, key: str) -> Journal:
        """Starts an empty journal, in place of any that is there."""
        with disk_errors("starting the journal", path):
            journal = cls(path, FileIO(path, "w+"), key)
            journal._add(_line({"key": key}))
            sync_path(path.parent)
        return journal

    @classmethod
    def open(cls, path: Path) -> Journal | None:
        """Reads a journal and cuts off what a crash left half written; None without a whole first line."""
        if not path.is_file():
            return None
        with disk_errors("reading the journal", path):
            whole, end = _whole_lines(path.read_bytes())
            if not whole or not isinstance(key := whole[0].get("key"), str):
                return None
            file = FileIO(path, "r+")
            file.truncate(end)
        return cls(path, file, key, end, (Record(**line) for line in whole[1:]))

    def read(self) -> dict[str, Record]:
        """The latest record of every finished tensor."""
        return dict(self._records)

    def append(self, records: Iterable[Record]) -> None:
        """Adds records and waits until they are on the disk; the data they speak of must have been synced before."""
        new = {record.tensor: record for record in records}
        with disk_errors("writing the journal", self._path):
            self._add(b"".join(_line(vars(record)) for record in new.values()))
        self._records |= new

    def restart(self, records: Iterable[Record]) -> None:
        """Keeps only these records, as after a resumed build was checked; does nothing when all are kept."""
        kept = {record.tensor: record for record in records}
        if kept.keys() == self._records.keys():
            return
        with disk_errors("writing the journal", self._path):
            self._file.truncate(0)
            self._end, self._records = 0, kept
            self._add(b"".join(map(_line, [{"key": self.key}, *map(vars, kept.values())])))

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()

    def _add(self, data: bytes) -> None:
        """Write and sync at the end; where that fails, what was written of it is cut off again."""
        try:
            write_all(self._file.fileno(), memoryview(data), self._end)
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(data)


def _checksum(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode()


def _line(content: Mapping[str, object]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return _checksum(text) + b" " + text + b"\n"


def _whole_lines(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The contents of the lines before the first broken one, and where they end."""
    contents, end = [], 0
    while (stop := data.find(b"\n", end)) >= 0:
        checksum, _, text = data[end:stop].partition(b" ")
        if checksum != _checksum(text):
            break
        contents.append(json.loads(text))
        end = stop + 1
    return contents, end
