"""Names in recipes, and references to checkpoints: a path, or a Hub id with an optional revision."""

from __future__ import annotations

import os
import re
from pathlib import Path

from surgeon.recipe.scalars import resolve

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?![^@]*(?:--|\.\.))(?:{_PART}/)?{_PART}(?:@[A-Za-z0-9_][A-Za-z0-9_./-]*)?")


def is_path(text: str) -> bool:
    """Whether a native recipe means a path by this text."""
    return text.startswith(("./", "../", "/", "~")) or text in (".", "..")


def reference(text: str, folder: Path) -> str:
    """A native recipe's reference: a path made absolute from `folder`, or a Hub id. ValueError when neither."""
    if is_path(text):
        return absolute(text, folder)
    if _HUB_ID.fullmatch(text):
        return text
    spellings = "a path starts with ./ ../ / or ~, a Hub id is org/name or org/name@revision"
    raise ValueError(f"{text!r} is neither a path nor a Hub id: {spellings}")


def probed_reference(text: str) -> str:
    """The command line's rule: a path, made absolute from the working directory, if it exists; else a Hub id."""
    if is_path(text) or exists(text):
        return absolute(text, Path.cwd())
    if _HUB_ID.fullmatch(text):
        return text
    raise ValueError(f"there is no {text!r} here, and it is not a Hub id (org/name or org/name@revision)")


def exists(text: str) -> bool:
    """Whether there is such a path, seen from the working directory."""
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):
        return False


def identifier(text: str) -> str:
    """A name a recipe can use, made from any text."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_") or "model"
    name = f"m_{name}" if name[0].isdigit() else name
    return name if resolve(name) == name else f"{name}_"


def unique(name: str, taken: set[str]) -> str:
    """The name, numbered until it is free; it is taken from then on."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def absolute(text: str, folder: Path) -> str:
    """The path a text means, absolute and normal, from a folder. ValueError where it can mean none."""
    if "\0" in text:
        raise ValueError("a path cannot hold a NUL character")
    try:
        return os.path.normpath(folder.absolute() / Path(text).expanduser())
    except RuntimeError:
        raise ValueError(f"{text!r}: there is no such home folder") from None
