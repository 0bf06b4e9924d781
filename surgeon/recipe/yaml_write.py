"""Data → YAML text: the outer levels as lines, what is inside as flow; texts quoted where they must be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from surgeon.recipe.scalars import resolve
from surgeon.space.coefficient import decimal

_PLAIN = re.compile(r"[A-Za-z0-9_(./~](?:[A-Za-z0-9_./@+*() -]*[A-Za-z0-9_./)])?")


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
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Fraction):
        number = decimal(Fraction(value))  # without a finite decimal it is p/q, a text
        return f'"{number}"' if "/" in number else number
    return _text(value)


def _text(text: str) -> str:
    """A text that reads back as itself: bare where that is safe."""
    try:
        bare = bool(_PLAIN.fullmatch(text)) and resolve(text) == text
    except ValueError:
        bare = False
    escaped = (
        letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in re.sub(r'([\\"])', r"\\\1", text)
    )
    return text if bare else f'"{"".join(escaped)}"'
