"""Data → YAML text: the outer levels as lines, what is inside as flow; texts quoted where they must be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from surgeon.recipe.scalars import resolve
from surgeon.space.coefficient import decimal

_PLAIN = re.compile(r"(?:[A-Za-z_(~]|[-0-9][-0-9A-Za-z_.(]|\.?[./])(?:[A-Za-z0-9_./@+*() -]*[A-Za-z0-9_./)])?")


def write_yaml(data: Mapping[str, Any], *, levels: int) -> str:
    """The text of nested mappings; `levels` of them below the first are written as lines."""
    return "\n".join(_lines(data, "", levels)) + "\n"


def _lines(data: Mapping[str, Any], indent: str, levels: int) -> Iterator[str]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value and levels:
            yield f"{indent}{_text(key)}:"
            yield from _lines(value, indent + "  ", levels - 1)
        else:
            yield f"{indent}{_text(key)}: {_flow(value)}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(inner) for inner in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Fraction):
        return _text(decimal(Fraction(value)), number=True)
    return _text(value)


def _text(text: str, *, number: bool = False) -> str:
    """A text that reads back as itself: bare where that is safe. A number without a finite decimal is a text, p/q."""
    if number and "/" not in text:
        return text
    if _PLAIN.fullmatch(text) and "  " not in text and _is_text(text):
        return text
    return '"' + "".join(_escaped(letter) for letter in text) + '"'


def _is_text(text: str) -> bool:
    try:
        return resolve(text) == text
    except ValueError:
        return False


def _escaped(letter: str) -> str:
    if letter in '\\"':
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
