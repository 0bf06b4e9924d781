"""A recipe's text as a tree of nodes, each knowing where it was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from surgeon.errors import Origin

Scalar = str | int | Fraction | bool | None
Key = str | int


@dataclass(frozen=True)
class Node:
    """A scalar, a list of nodes or a mapping of nodes.

    `at` is where the value starts, `key` where its key does. `verbatim` says that the characters of a text stand in the
    file just as they are, from `at` on, so that a column inside it can be told. `from_user` marks what was typed on the
    command line or in mergekit's YAML, where paths are relative to the working directory.
    """

    value: Scalar | tuple[Node, ...] | Mapping[str, Node]
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

    def get(self, key: str) -> Node | None:
        """The entry, where there is one that is not null."""
        node = self.mapping.get(key)
        return None if node is None or node.value is None else node

    def with_value(self, value: Scalar | tuple[Node, ...] | Mapping[str, Node]) -> Node:
        """The same place, holding something else."""
        return replace(self, value=value, verbatim=False)


def plain(node: Node) -> Any:
    """The data without the places."""
    if isinstance(node.value, Mapping):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, tuple):
        return [plain(child) for child in node.value]
    return node.value


def child(node: Node, key: Key) -> Node | None:
    """The entry or item at a key, or None."""
    if isinstance(key, int):
        return node.items[key] if 0 <= key < len(node.items) else None
    return node.mapping.get(key)


def replaced(node: Node, path: tuple[Key, ...], new: Node) -> Node:
    """The tree with the node at `path` replaced, or added where its mapping lacks it."""
    if not path:
        return new
    head, rest = path[0], path[1:]
    if isinstance(head, int):
        items = list(node.items)
        items[head] = replaced(items[head], rest, new)
        return node.with_value(tuple(items))
    inner = node.mapping.get(head) or Node({}, new.at, new.key)
    return node.with_value({**node.mapping, head: replaced(inner, rest, new)})


def words(node: Node | None) -> Iterator[tuple[str, Node]]:
    """The names a mapping (its keys) or a list of texts gives, in order."""
    if node is not None:
        yield from node.mapping.items()
        yield from ((item.text, item) for item in node.items if item.text)


def kind(node: Node) -> str:
    """What was found, in a user's words."""
    value = node.value
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, tuple):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, str) else f"the number {float(value):g}"
