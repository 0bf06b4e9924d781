"""What a build has finished: an append-only file of checksummed lines that survives being cut off anywhere.

The first line holds the build's key, each further line one finished tensor. A line is a checksum, a space and JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from surgeon.store.writer import disk_errors, sync_path


@dataclass(frozen=True)
class Record:
    """A finished tensor: blake3 of its written bytes, and of each input tensor (by its place on disk) read for it."""

    tensor: str
    digest: str
    inputs: Mapping[str, str]


class Journal:
    """An open journal; made by `create` or `open`."""

    def __init__(self, path: Path, fd: int, end: int, key: str, records: Mapping[str, Record]) -> None:
        self.key = key
        self._path = path
        self._fd: int | None = fd
        self._end = end
        self._records = dict(records)
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: Path, key: str) -> Journal:
        """Starts an empty journal, in place of any that is there."""
        with disk_errors("starting the journal", path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            journal = cls(path, fd, 0, key, {})
            try:
                journal._add(_line({"key": key}))
                sync_path(path.parent)
            except OSError:
                journal.close()
                raise
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
            fd = os.open(path, os.O_RDWR)
            os.ftruncate(fd, end)
        records = [Record(line["tensor"], line["digest"], line["inputs"]) for line in whole[1:]]
        return cls(path, fd, end, key, {record.tensor: record for record in records})

    def read(self) -> dict[str, Record]:
        """The latest record of every finished tensor."""
        with self._lock:
            return dict(self._records)

    def append(self, records: Iterable[Record]) -> None:
        """Adds records and waits until they are on the disk; the data they speak of must have been synced before."""
        new = {record.tensor: record for record in records}
        with self._lock, disk_errors("writing the journal", self._path):
            self._add(b"".join(map(_record_line, new.values())))
            self._records |= new

    def restart(self, records: Iterable[Record]) -> None:
        """Keeps only these records, as after a resumed build was checked; does nothing when all are kept."""
        kept = {record.tensor: record for record in records}
        if kept.keys() == self._records.keys():
            return
        with self._lock, disk_errors("writing the journal", self._path):
            if self._fd is None:
                raise ValueError("the journal is closed")
            os.ftruncate(self._fd, 0)
            self._end, self._records = 0, kept
            self._add(_line({"key": self.key}) + b"".join(map(_record_line, kept.values())))

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _add(self, data: bytes) -> None:
        if self._fd is None:
            raise ValueError("the journal is closed")
        try:
            rest, at = memoryview(data), self._end
            while rest:
                written = os.pwrite(self._fd, rest, at)
                rest, at = rest[written:], at + written
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._end)
            raise
        self._end = at


def _checksum(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode()


def _line(content: Mapping[str, object]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return _checksum(text) + b" " + text + b"\n"


def _record_line(record: Record) -> bytes:
    return _line({"tensor": record.tensor, "digest": record.digest, "inputs": dict(record.inputs)})


def _whole_lines(data: bytes) -> tuple[list[dict], int]:
    """The contents of the lines before the first broken one, and where they end."""
    contents, end = [], 0
    while (stop := data.find(b"\n", end)) >= 0:
        checksum, _, text = data[end:stop].partition(b" ")
        if checksum != _checksum(text):
            break
        contents.append(json.loads(text))
        end = stop + 1
    return contents, end
