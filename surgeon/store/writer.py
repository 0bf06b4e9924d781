"""Writes an output folder: preallocated weight files, tensors in any order from any thread, side files."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from surgeon.errors import OutputError, RunError, SurgeonError
from surgeon.store.header import Stored
from surgeon.store.layout import Layout, Placement, ShardFile, same_as_source
from surgeon.tensors import human_bytes

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_KERNEL_COPY = (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM)
_COPY_AT_ONCE = 1 << 30
_BUFFER = 4 << 20
_sync_data = getattr(os, "fdatasync", os.fsync)


@contextmanager
def disk_errors(doing: str, path: Path, missing: int = 0) -> Iterator[None]:
    """Turns an OSError into what happened, where and what to do; `missing`: bytes still to be found on that disk."""
    try:
        yield
    except OSError as error:
        raise _explained(error, doing, path, missing) from error


def sync_path(path: Path) -> None:
    """fsync of a file or of a folder's entries."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class FolderWriter:
    """The weight files of one layout in one folder; safe to use from several threads."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder = folder
        self._layout = layout
        self._fds: dict[str, int] = {}
        self._lock = threading.Lock()

    def create(self) -> None:
        """Gives every file its full size and its header, so that a full disk shows now; keeps files that have both."""
        made: list[Path] = []
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for shard in self._layout.files:
                path = self._folder / shard.name
                if not (path.is_file() and same_as_source(shard, path)):
                    made.append(path)
                    _allocate(path, shard)
        except OSError as error:
            for path in made:
                path.unlink(missing_ok=True)
            raise _explained(error, "making room for the weights", self._folder, self._missing()) from error

    def write(self, tensor: str, start: int, data: memoryview | bytes) -> None:
        """Writes bytes of a tensor; `start` is the byte offset within it."""
        place, view = self._layout.tensors[tensor], memoryview(data).cast("B")
        _check_range(tensor, place, start, len(view))
        with disk_errors(f"writing {tensor}", self._folder / place.file):
            _write_all(self._fd(place.file), view, place.offset + start)

    def copy(self, tensor: str, source: Stored) -> None:
        """Copies a whole tensor's bytes from another file, in the kernel where it can, shared where the disk can."""
        place = self._layout.tensors[tensor]
        if source.spec.nbytes != place.spec.nbytes:
            raise ValueError(f"{tensor}: a copy from {source.spec} to {place.spec}")
        self._transfer(f"copying {tensor}", source.file, source.offset, place.file, place.offset, place.spec.nbytes)

    def copy_file(self, shard: ShardFile, source: Path) -> None:
        """Copies a whole weight file for which `same_as_source` holds; no bytes move where the disk shares blocks."""
        self._transfer(f"copying {shard.name}", source, 0, shard.name, 0, shard.size)

    def read(self, tensor: str, start: int, length: int) -> bytes:
        """Reads back bytes of a tensor."""
        place = self._layout.tensors[tensor]
        _check_range(tensor, place, start, length)
        data = bytearray(length)
        with disk_errors(f"reading {tensor} back", self._folder / place.file):
            filled = _read_into(self._fd(place.file), memoryview(data), place.offset + start)
        if filled < length:
            raise RunError(f"{self._folder / place.file} is shorter than its header says", hint="apply again, --fresh")
        return bytes(data)

    def sync(self, files: Iterable[str]) -> None:
        """Waits until what was written to these files is on the disk."""
        for file in files:
            with disk_errors("syncing", self._folder / file):
                _sync_data(self._fd(file))

    def finish(self, side_files: Sequence[tuple[Path, str]], texts: Mapping[str, bytes]) -> None:
        """Adds index, side files (source, relative name) and texts (which win over those); sets modes; syncs all."""
        written = dict(texts)
        if self._layout.index is not None and self._layout.index_name is not None:
            written[self._layout.index_name] = self._layout.index
        with disk_errors("finishing", self._folder, sum(map(len, written.values()))):
            for source, name in side_files:
                if name not in written:
                    shutil.copyfile(source, self._target(name))
            for name, data in written.items():
                self._target(name).write_bytes(data)
            _settle(self._folder)

    def close(self) -> None:
        """Closes all files."""
        with self._lock:
            while self._fds:
                os.close(self._fds.popitem()[1])

    def _fd(self, file: str) -> int:
        with self._lock:
            if file not in self._fds:
                self._fds[file] = os.open(self._folder / file, os.O_RDWR)
            return self._fds[file]

    def _transfer(self, doing: str, source: Path, start: int, file: str, offset: int, length: int) -> None:
        with disk_errors(doing, source):
            fd = os.open(source, os.O_RDONLY)
        try:
            with disk_errors(doing, self._folder / file):
                copied = _copy_range(fd, start, self._fd(file), offset, length)
        finally:
            os.close(fd)
        if copied < length:
            raise RunError(
                f"{source} ended {human_bytes(length - copied)} early while {doing}",
                hint="the file changed or is incomplete: fetch it again, then run the same command",
            )

    def _target(self, name: str) -> Path:
        relative = PurePosixPath(name)
        weights = {shard.name for shard in self._layout.files}
        if relative.is_absolute() or ".." in relative.parts or name in weights:
            raise OutputError(f"a side file may not be written as {name!r}", hint="rename it in the source's folder")
        target = self._folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _missing(self) -> int:
        """Bytes that the disk lacks for the whole output."""
        paths = [self._folder / shard.name for shard in self._layout.files]
        there = sum(path.stat().st_blocks * 512 for path in paths if path.exists())
        wanted = sum(shard.size for shard in self._layout.files) - there
        disk = os.statvfs(self._folder) if self._folder.exists() else None
        # Under a quota the disk itself may have room: then all that is wanted has to be found.
        short = wanted - disk.f_bavail * disk.f_frsize if disk else wanted
        return max(short if short > 0 else wanted, 0)


def _explained(error: OSError, doing: str, path: Path, missing: int) -> SurgeonError:
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


def _allocate(path: Path, shard: ShardFile) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        _reserve(fd, shard.size)
        _write_all(fd, memoryview(shard.header), 0)
    finally:
        os.close(fd)


def _reserve(fd: int, size: int) -> None:
    reserve = getattr(os, "posix_fallocate", None)
    if reserve is None:
        os.ftruncate(fd, size)
        return
    try:
        reserve(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(fd, size)


def _check_range(tensor: str, place: Placement, start: int, length: int) -> None:
    if start < 0 or start + length > place.spec.nbytes:
        raise ValueError(f"{tensor}: bytes {start} to {start + length} of {place.spec.nbytes}")


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _read_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fills the buffer; fewer bytes only at the end of the file."""
    filled = 0
    while filled < len(buffer):
        count = os.preadv(fd, [buffer[filled:]], offset + filled)
        if not count:
            break
        filled += count
    return filled


def _copy_range(source: int, start: int, target: int, offset: int, length: int) -> int:
    """Copies bytes between files; returns how many there were."""
    done = _kernel_copy(source, start, target, offset, length)
    buffer = memoryview(bytearray(min(_BUFFER, length - done)))
    while done < length:
        count = _read_into(source, buffer[: length - done], start + done)
        if not count:
            break
        _write_all(target, buffer[:count], offset + done)
        done += count
    return done


def _kernel_copy(source: int, start: int, target: int, offset: int, length: int) -> int:
    """copy_file_range as far as it goes: it may stop early, and some file systems refuse it or return 0."""
    if not hasattr(os, "copy_file_range"):
        return 0
    done = 0
    while done < length:
        try:
            count = os.copy_file_range(source, target, min(_COPY_AT_ONCE, length - done), start + done, offset + done)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            break
        if not count:
            break
        done += count
    return done


def _settle(folder: Path) -> None:
    """Modes 0644 and 0755 whatever the umask, then fsync of all files and folders, the folder itself last."""
    for parent, _, names in os.walk(folder, topdown=False):
        for path in [*(Path(parent) / name for name in names), Path(parent)]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            sync_path(path)
