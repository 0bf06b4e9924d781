"""A recipe's text as a tree of nodes, each knowing where it was written, and the faults found in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from surgeon.errors import Fault, Origin, RecipeError, nearest

Key = str | int
Value = str | int | Fraction | bool | None | tuple["Node", ...] | Mapping[str, "Node"]


@dataclass(frozen=True)
class Node:
    """A scalar, a list of nodes or a mapping of nodes.

    `at` is where the value starts, `key` where its key does. `verbatim` says that the characters of a text stand in the
    file just as they are, from `at` on, so that a column inside it can be told. `from_user` marks what was typed on the
    command line or in mergekit's YAML, where paths are relative to the working directory.
    """

    value: Value
    at: Origin
    key: Origin | None = None
    verbatim: bool = False
    from_user: bool = False

    @property
    def mapping(self) -> Mapping[str, Node]:
        """The entries, or none where this is no mapping."""
        return self.value if isinstance(self.value, Mapping) else {}

    @property
    def items(self) -> tuple[Node, ...]:
        """The items, or none where this is no list."""
        return self.value if isinstance(self.value, tuple) else ()

    @property
    def text(self) -> str:
        """The text, or nothing where this is no text."""
        return self.value if isinstance(self.value, str) else ""

    @property
    def start(self) -> Origin:
        """Where its key stands, or the value where it has none."""
        return self.key or self.at

    def get(self, key: str) -> Node | None:
        """The entry, where there is one that is not null."""
        node = self.mapping.get(key)
        return None if node is None or node.value is None else node

    def child(self, key: Key) -> Node | None:
        """The entry or item at a key, or None."""
        if isinstance(key, int):
            return self.items[key] if 0 <= key < len(self.items) else None
        return self.mapping.get(key)

    def named(self, key: str) -> Iterator[tuple[str, Node]]:
        """The names that an entry gives, in order: the keys of a mapping, or the texts of a list."""
        if node := self.get(key):
            yield from node.mapping.items()
            yield from ((item.text, item) for item in node.items if item.text)

    def inside(self, column: int) -> Origin:
        """The place of a character of a text; the text's start where the file spells it otherwise."""
        return replace(self.at, column=self.at.column + column) if self.verbatim else self.at

    def with_child(self, key: Key, child: Node) -> Node:
        """The same place, with the entry added or replaced, or the item replaced."""
        if isinstance(key, int):
            return self.with_value((*self.items[:key], child, *self.items[key + 1 :]))
        return self.with_value({**self.mapping, key: child})

    def with_value(self, value: Value) -> Node:
        """The same place, holding something else."""
        return replace(self, value=value, verbatim=False)


class Faults:
    """The faults found so far, so that all are reported at once."""

    def __init__(self) -> None:
        self.found: list[Fault] = []

    def add(self, message: str, where: Node | Origin, hint: str = "") -> None:
        """Note a fault at a node's value, or at a place."""
        fault = Fault(message, where.at if isinstance(where, Node) else where, hint)
        if fault not in self.found:
            self.found.append(fault)

    def unknown_keys(self, node: Node, known: Collection[str], place: str) -> None:
        """Note the keys of a mapping that are none of those known."""
        for key, inner in node.mapping.items():
            if key not in known:
                self.add(f"unknown key {key!r} in {place}", inner.start, nearest(key, known))

    def check(self) -> None:
        """Raise RecipeError if any fault was noted, in the order of the file."""
        if self.found:
            raise RecipeError(sorted(self.found, key=lambda fault: _place(fault.origin)))


def _place(origin: Origin | None) -> tuple[str, int, int]:
    return (origin.file, origin.line, origin.column) if origin else ("", 0, 0)


def plain(node: Node) -> Any:
    """The data without the places."""
    if isinstance(node.value, Mapping):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, tuple):
        return [plain(child) for child in node.value]
    return node.value


def kind(value: Any) -> str:
    """What was found, in a user's words: a node, or plain data."""
    value = value.value if isinstance(value, Node) else value
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, tuple | list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, str) else f"the number {float(value):g}"
