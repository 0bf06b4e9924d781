"""Collecting the faults of a recipe, so that all are reported at once."""

from __future__ import annotations

from surgeon.errors import Fault, Origin, RecipeError
from surgeon.recipe.document import Node


class Faults:
    """The faults found so far."""

    def __init__(self) -> None:
        self.found: list[Fault] = []

    def __len__(self) -> int:
        return len(self.found)

    def add(self, message: str, where: Node | Origin | None, hint: str = "") -> None:
        """Note a fault at a node's value, or at a place."""
        fault = Fault(message, where.at if isinstance(where, Node) else where, hint)
        if fault not in self.found:
            self.found.append(fault)

    def add_at_key(self, message: str, node: Node, hint: str = "") -> None:
        """Note a fault at a node's key."""
        self.add(message, node.key or node.at, hint)

    def check(self) -> None:
        """Raise RecipeError if any fault was noted, in the order of the file."""
        if self.found:
            raise RecipeError(sorted(self.found, key=_place))


def _place(fault: Fault) -> tuple[str, int, int]:
    origin = fault.origin
    return (origin.file, origin.line, origin.column) if origin else ("", 0, 0)
