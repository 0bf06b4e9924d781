"""Writes an output folder: preallocated weight files, tensors in any order from any thread, side files."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from surgeon.errors import OutputError, RunError
from surgeon.store.files import Files, disk_errors, explained, read_into, sync_path, write_all
from surgeon.store.header import Stored
from surgeon.store.layout import Layout, ShardFile, same_as_source
from surgeon.tensors import human_bytes

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_COPY_AT_ONCE = 1 << 30
_BUFFER = 4 << 20
_sync_data = getattr(os, "fdatasync", os.fsync)


class FolderWriter:
    """The weight files of one layout in one folder; safe to use from several threads."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder = folder
        self._layout = layout
        self._files = Files(os.O_RDWR)

    def create(self) -> None:
        """Gives every file its full size and its header, so that a full disk shows now; keeps files that have both."""
        shards = {self._folder / shard.name: shard for shard in self._layout.files}
        with disk_errors("making the folder of the weights", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            missing = {path: s for path, s in shards.items() if not (path.is_file() and same_as_source(s, path))}
        try:
            for path, shard in missing.items():
                _allocate(path, shard)
        except OSError as error:
            for path in filter(Path.exists, missing):
                path.unlink()
            wanted = sum(shard.size for shard in missing.values())
            raise explained(
                error, "making room for the weights", self._folder, _lacking(self._folder, wanted)
            ) from error

    def write(self, tensor: str, start: int, data: memoryview | bytes) -> None:
        """Writes bytes of a tensor; `start` is the byte offset within it."""
        place, view = self._layout.tensors[tensor], memoryview(data).cast("B")
        if start < 0 or start + len(view) > place.spec.nbytes:
            raise ValueError(f"{tensor}: bytes {start} to {start + len(view)} of {place.spec.nbytes}")
        with disk_errors(f"writing {tensor}", path := self._folder / place.file):
            write_all(self._files.fd(path), view, place.offset + start)

    def copy(self, tensor: str, source: Stored) -> None:
        """Copies a whole tensor's bytes from another file, in the kernel where it can, shared where the disk can."""
        place = self._layout.tensors[tensor]
        if source.spec.nbytes != place.spec.nbytes:
            raise ValueError(f"{tensor}: a copy from {source.spec} to {place.spec}")
        self._transfer(f"copying {tensor}", source.file, source.offset, place.file, place.offset, place.spec.nbytes)

    def copy_file(self, shard: ShardFile, source: Path) -> None:
        """Copies a whole weight file for which `same_as_source` holds; no bytes move where the disk shares blocks."""
        self._transfer(f"copying {shard.name}", source, 0, shard.name, 0, shard.size)

    def sync(self, files: Iterable[str]) -> None:
        """Waits until what was written to these files is on the disk."""
        for file in files:
            with disk_errors("syncing", path := self._folder / file):
                _sync_data(self._files.fd(path))

    def finish(self, side_files: Sequence[tuple[Path, str]], texts: Mapping[str, bytes]) -> None:
        """Adds index, side files (source, relative name) and texts (which win over those); sets modes; syncs all."""
        written = dict(texts)
        if self._layout.index is not None and self._layout.index_name is not None:
            written[self._layout.index_name] = self._layout.index
        with disk_errors("finishing", self._folder):
            for source, name in side_files:
                if name not in written:
                    shutil.copyfile(source, self._target(name))
            for name, data in written.items():
                self._target(name).write_bytes(data)
            settle(self._folder)

    def close(self) -> None:
        """Closes all files."""
        self._files.close()

    def _transfer(self, doing: str, source: Path, start: int, file: str, offset: int, length: int) -> None:
        target = self._folder / file
        with disk_errors(doing, source), source.open("rb") as opened, disk_errors(doing, target):
            copied = _copy_range(opened.fileno(), start, self._files.fd(target), offset, length)
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


def _lacking(folder: Path, wanted: int) -> int:
    """Bytes to be freed for `wanted` ones; all of them under a quota, where the disk itself may have room."""
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    return wanted - free if wanted > free else wanted


def _allocate(path: Path, shard: ShardFile) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, shard.size)
        except (AttributeError, OSError) as error:
            # Neither macOS nor every file system reserves room.
            if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
                raise
            file.truncate(shard.size)
        write_all(file.fileno(), memoryview(shard.header), 0)


def _copy_range(source: int, start: int, target: int, offset: int, length: int) -> int:
    """Copies bytes between files; returns how many there were."""
    done = _kernel_copy(source, start, target, offset, length)
    buffer = memoryview(bytearray(min(_BUFFER, length - done)))
    while done < length:
        count = read_into(source, buffer[: length - done], start + done)
        if not count:
            break
        write_all(target, buffer[:count], offset + done)
        done += count
    return done


def _kernel_copy(source: int, start: int, target: int, offset: int, length: int) -> int:
    """copy_file_range as far as it goes: it may stop early, and some file systems refuse it or return 0."""
    done = 0
    while hasattr(os, "copy_file_range") and done < length:
        try:
            count = os.copy_file_range(source, target, min(_COPY_AT_ONCE, length - done), start + done, offset + done)
        except OSError as error:
            if error.errno not in (*_UNSUPPORTED, errno.EXDEV, errno.EPERM):
                raise
            break
        if not count:
            break
        done += count
    return done


def settle(folder: Path) -> None:
    """Modes 0644 and 0755 whatever the umask, then fsync of all files and folders, the folder itself last."""
    for parent, _, names in os.walk(folder, topdown=False):
        for path in [*(Path(parent) / name for name in names), Path(parent)]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            sync_path(path)
