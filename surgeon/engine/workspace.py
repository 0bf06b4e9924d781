"""The hidden folder beside OUT in which an output is built, and the one rename that makes it OUT.

`.OUT.surgeon/` holds `lock`, `journal`, `data/` (the output to be), and during a commit `commit` (the inode of `data/`:
as long as `data/` has it, the rename has not happened) and perhaps `old/` (what OUT was, where two names cannot be
swapped at once). Killed at any moment, OUT is what it was or complete; the next Workspace on that OUT tidies up.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from surgeon.engine.journal import Journal
from surgeon.errors import OutputError
from surgeon.store.files import disk_errors, sync_path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_TRIES = 1000


class Workspace:
    """A locked build of one OUT: `folder` to write into, `journal` of what is done, `resumed` or fresh.

    Used as a context manager it lets go of the lock at the end; without `commit` or `discard` the build stays and the
    next Workspace with the same key resumes it.
    """

    def __init__(
        self, out: Path, key: str, *, overwrite: bool = False, resume: bool | None = None, inputs: Iterable[Path] = ()
    ) -> None:
        self.out = Path(os.path.realpath(out))
        self._overwrite = overwrite
        self._hidden = hidden(self.out)
        self.folder = self._hidden / "data"
        with disk_errors("preparing the build", self._hidden):
            refuse_overlap(self.out, inputs)
            if not self._hidden.exists():
                refuse_existing(self.out, overwrite)
            self._made = [parent for parent in self.out.parents if not parent.exists()]
            self._lock: int | None = self._take_lock()
            try:
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, str(os.getpid()).encode(), 0)
                self._recover()
                refuse_existing(self.out, overwrite)
                self.resumed, self.journal = self._start(key, resume)
            except BaseException:
                self._let_go()
                raise

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def commit(self) -> None:
        """Makes the build OUT, which stands whole from then on, and removes the hidden folder."""
        with disk_errors("moving the finished output into place", self.out):
            sync_path(self.folder)
            (self._hidden / "commit").write_text(f"{_inode(self.folder)}\n")
            sync_path(self._hidden / "commit")
            sync_path(self._hidden)
            self._place()
            sync_path(self.out.parent)
            sync_path(self._hidden)
        try:
            self._sweep()
        except OSError:
            # OUT stands; the marker makes the next run sweep again.
            self.close()
            return
        self.close()

    def discard(self) -> None:
        """Removes the build; OUT is as it was."""
        with disk_errors("removing the build", self._hidden):
            self._sweep()
        self.close()

    def close(self) -> None:
        """Lets go of the lock and leaves the build as it is; a second call does nothing."""
        if self._lock is not None:
            self.journal.close()
            self._let_go()

    def _take_lock(self) -> int:
        for _ in range(_TRIES):
            fd = self._open_lock()
            if fd is None:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(fd, 32, 0).decode(errors="replace")
                os.close(fd)
                who = f"process {holder}" if holder else "another process"
                hint = "wait for it or stop it, or choose another folder"
                raise OutputError(f"{who} is building {self.out}", hint=hint) from None
            # A holder that has just finished removes the file: then what was locked is no longer the lock.
            if os.fstat(fd).st_ino == _inode(self._hidden / "lock"):
                return fd
            os.close(fd)
        raise OutputError(f"{self._hidden} cannot be made or keeps vanishing", hint="choose another output folder")

    def _open_lock(self) -> int | None:
        """None where another process, just ending, removes the folder at this moment."""
        try:
            self._hidden.mkdir(parents=True, exist_ok=True)
            return os.open(self._hidden / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except (FileNotFoundError, FileExistsError):
            return None
        except OSError:
            if self._hidden.is_dir():
                _remove_if_empty(self._hidden)
            raise

    def _recover(self) -> None:
        """Brings a commit that was cut short to one of its two ends."""
        marker, old = self._hidden / "commit", self._hidden / "old"
        marked = marker.read_text() if marker.exists() else ""
        if not marked.endswith("\n"):
            return
        if _inode(self.folder) != int(marked):
            self._sweep()
            return
        if os.path.lexists(old):
            if os.path.lexists(self.out) and not _is_empty_folder(self.out):
                raise OutputError(
                    f"an overwrite of {self.out} was cut short and something else has taken its place",
                    hint=f"what it held before is in {old}: move one of the two away, then run the same command again",
                )
            old.rename(self.out)
            sync_path(self.out.parent)
        marker.unlink()

    def _start(self, key: str, resume: bool | None) -> tuple[bool, Journal]:
        path = self._hidden / "journal"
        journal = Journal.open(path) if resume is not False else None
        if journal is not None and journal.key == key and self.folder.is_dir():
            return True, journal
        if journal is not None:
            journal.close()
        if resume:
            why = "was started by another recipe, version or inputs" if journal is not None else "does not exist"
            raise OutputError(f"the unfinished build of {self.out} {why}", hint="start afresh: leave --resume out")
        self._sweep()
        self.folder.mkdir()
        return False, Journal.create(path, key)

    def _place(self) -> None:
        if not os.path.lexists(self.out) or _is_empty_folder(self.out):
            self.folder.rename(self.out)
            return
        refuse_existing(self.out, self._overwrite)
        if _exchange(self.folder, self.out):
            return
        old = self._hidden / "old"
        self.out.rename(old)
        try:
            self.folder.rename(self.out)
        except OSError:
            old.rename(self.out)
            raise

    def _sweep(self) -> None:
        """Removes all but the lock; the journal goes first, so that a half-swept build is never resumed."""
        for name in ("journal", "data", "old", "commit"):
            path = self._hidden / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _let_go(self) -> None:
        if self._lock is None:
            return
        try:
            if self._hidden.is_dir() and [entry.name for entry in self._hidden.iterdir()] == ["lock"]:
                (self._hidden / "lock").unlink()
                for folder in (self._hidden, *self._made):
                    _remove_if_empty(folder)
        finally:
            os.close(self._lock)
            self._lock = None


def hidden(out: Path) -> Path:
    """The folder beside OUT in which it is built."""
    return out.parent / f".{out.name}.surgeon"


def refuse_existing(out: Path, overwrite: bool) -> None:
    """OutputError for an OUT that stands, unless it may be overwritten."""
    if out.is_mount():
        raise OutputError(f"{out} is a mount point", hint=f"write into a folder in it: {out / 'model'}")
    if os.path.lexists(out) and not overwrite and not _is_empty_folder(out):
        raise OutputError(f"{out} exists", hint="choose another output folder, or add --overwrite")


def refuse_overlap(out: Path, inputs: Iterable[Path]) -> None:
    """OutputError where OUT lies in or around an input.

    Compares inodes, not names: they see through links, bind mounts and upper and lower case.
    """
    above_out, here = _lineage(out), _identity(out)
    for path in inputs:
        # In a Hub cache every file of a folder is a link to elsewhere.
        links = [entry for entry in path.iterdir() if entry.is_symlink()] if path.is_dir() else []
        if path.is_dir() and _identity(path) in above_out:
            raise OutputError(f"{out} is the input {path} or inside it", hint="choose an output folder elsewhere")
        if here is not None and any(here in _lineage(part) for part in (path, *links)):
            raise OutputError(f"the input {path} is {out} or inside it", hint="choose an output folder elsewhere")


def _lineage(path: Path) -> set[tuple[int, int] | None]:
    """A path and all folders above it, both as named and with links followed."""
    real = Path(os.path.realpath(path))
    named = Path(os.path.realpath(path.parent)) / path.name
    return {_identity(place) for place in (real, *real.parents, named, *named.parents)}


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _inode(path: Path) -> int | None:
    identity = _identity(path)
    return identity[1] if identity else None


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        # Another process may have come in meanwhile; what it made stays.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two names in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(second))
