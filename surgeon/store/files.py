"""Open files shared by threads, whole reads and writes, and what went wrong with a disk in words."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgeon.errors import OutputError, RunError, SurgeonError
from surgeon.store.header import Stored
from surgeon.tensors import human_bytes

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class Files:
    """One descriptor a file however many threads use it; opened when first asked for, to be read unless `flags` say."""

    def __init__(self, flags: int = os.O_RDONLY) -> None:
        self._flags = flags
        self._fds: dict[Path, int] = {}
        self._lock = threading.Lock()

    def fd(self, path: Path) -> int:
        """The descriptor of a file; OSError where it cannot be opened."""
        with self._lock:
            if path not in self._fds:
                self._fds[path] = os.open(path, self._flags)
            return self._fds[path]

    def fill(self, stored: Stored, start: int, buffer: memoryview) -> None:
        """Read bytes of a tensor from byte `start` on until the buffer is full."""
        try:
            filled = read_into(self.fd(stored.file), buffer, stored.offset + start)
        except OSError as error:
            raise RunError(f"{stored.file} cannot be read: {error.strerror}") from error
        if filled < len(buffer):
            raise RunError(f"{stored.file} ended early", hint="it changed while it was read: fetch it again")

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            while self._fds:
                os.close(self._fds.popitem()[1])


def read_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fills the buffer from byte `offset` on; fewer bytes only at the end of the file."""
    filled = 0
    while filled < len(buffer):
        count = os.preadv(fd, [buffer[filled:]], offset + filled)
        if not count:
            break
        filled += count
    return filled


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Writes all the bytes, from byte `offset` on."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def sync_path(path: Path) -> None:
    """fsync of a file or of a folder's entries."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def disk_errors(doing: str, path: Path) -> Iterator[None]:
    """Turns an OSError into what happened, where and what to do."""
    try:
        yield
    except OSError as error:
        raise explained(error, doing, path) from error


def explained(error: OSError, doing: str, path: Path, missing: int = 0) -> SurgeonError:
    """The error to raise instead; `missing`: the bytes to be freed on that disk, where known."""
    if error.errno in _FULL:
        amount = f"{human_bytes(missing)} ({missing} bytes)" if missing else "space"
        return RunError(
            f"the disk that holds {path} is full ({doing}: {error.strerror})",
            hint=f"free {amount} there; run the same command again to resume",
        )
    if error.errno in _FORBIDDEN:
        where = error.filename or path
        hint = "check its permissions, or choose another output folder"
        return OutputError(f"{where} cannot be used ({doing}: {error.strerror})", hint=hint)
    return RunError(f"{doing} failed at {path}: {error}", hint="run the same command again to resume")
