"""Files must lie where they claim to: inside the folder, or in the Hub cache's blobs it links to."""

from __future__ import annotations

from pathlib import Path

from surgeon.errors import CheckpointError


def names_in(root: Path) -> set[str]:
    """The names of the files and folders in `root`."""
    try:
        return {path.name for path in root.iterdir()}
    except OSError as error:
        raise CheckpointError(f"{root}: {error.strerror or error}", hint="give a folder that may be read") from None


def contained(root: Path, name: str, why: str) -> Path:
    """The file `name` inside `root`; CheckpointError when the name or a symlink leads elsewhere."""
    plain = name.isprintable() and not any(mark in name for mark in ("/", "\\", ":")) and len(name.encode()) <= 255
    if not plain or name in ("", ".", ".."):
        hint = "files are only read from the checkpoint's own folder"
        raise CheckpointError(f"{why}: {name!a} is not a plain file name", hint=hint)
    path = root / name
    if not links_inside(root, path):
        found = f"{path}: a symbolic link that leads out of the checkpoint ({why})"
        raise CheckpointError(found, hint=f"put the file itself into {root}")
    return path


def links_inside(root: Path, path: Path) -> bool:
    """Whether `path` is no symlink, or one that stays in `root` or leads to the blobs of the same Hub cache entry."""
    if not path.is_symlink():
        return True
    try:
        target = path.resolve()
    except (OSError, RuntimeError):
        return False
    folder = root.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":
        allowed += [folder.parent.parent / "blobs", folder.parent.parent.parent / "blobs"]
    return any(target.is_relative_to(place) for place in allowed)
