"""Choosing tensors by name: globs, or regular expressions behind `re:`."""

from __future__ import annotations

import fnmatch
import functools
import re


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    if pattern.startswith("re:"):
        return re.compile(pattern[3:])
    return re.compile(fnmatch.translate(pattern))


def matches(pattern: str | None, tensor: str) -> bool:
    """Whether a tensor's name fits; a glob must fit the whole name, a `re:` pattern any part; None fits all."""
    if pattern is None:
        return True
    return bool(_compiled(pattern).search(tensor) if pattern.startswith("re:") else _compiled(pattern).match(tensor))


def check_pattern(pattern: str) -> str:
    """The pattern itself, if it compiles; ValueError otherwise."""
    try:
        _compiled(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


def containing(text: str) -> str:
    """The glob for every name that contains `text` literally (mergekit's filters)."""
    return f"*{''.join(f'[{letter}]' if letter in '*?[' else letter for letter in text)}*"
