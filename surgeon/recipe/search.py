"""Numbers that a recipe leaves open, {search: [lo, hi]}: where they stand, and what they may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from surgeon.errors import Origin
from surgeon.recipe.document import Faults, Node, kind
from surgeon.recipe.load import read_tree

Value = float | int | str | bool
_KEYS = ("search", "choices")


@dataclass(frozen=True)
class Searched:
    """One open number: its place in the recipe (``steps.merged.weight``), and what it may be.

    `values` are the ends of a range, or with `choices` everything that it may be. `in_list` says that a list of one
    number stands for it, as a schedule of arithmetic needs.
    """

    path: str
    values: tuple[Value, ...]
    choices: bool = False
    in_list: bool = False
    origin: Origin | None = None

    def spelled(self, value: Value) -> str:
        """A value as `--set` takes it."""
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return f"[{text}]" if self.in_list else text


def searched(path: Path | str, overrides: Mapping[str, str] | None = None) -> tuple[Searched, ...]:
    """The open numbers of a recipe, in its order. RecipeError lists those that are not well formed."""
    faults = Faults()
    root = read_tree(Path(path), overrides or {}, faults)
    found = tuple(_found(root, (), faults))
    faults.check()
    return found


def _found(node: Node, path: tuple[str, ...], faults: Faults) -> Iterator[Searched]:
    if "search" in node.mapping:
        read = _read(node, path, faults)
        yield from [read] if read else []
        return
    inner = node.mapping.items() if node.mapping else ((str(index), item) for index, item in enumerate(node.items))
    for key, child in inner:
        yield from _found(child, (*path, key), faults)


def _read(node: Node, path: tuple[str, ...], faults: Faults) -> Searched | None:
    before = len(faults.found)
    faults.unknown_keys(node, _KEYS, ".".join(path))
    given, choices = node.mapping["search"], node.get("choices")
    pick = choices is not None and choices.value is True
    values = [_plain(item.value) for item in given.items]
    if choices is not None and not isinstance(choices.value, bool):
        faults.add(f"choices is true or false, not {kind(choices)}", choices)
    elif len(values) < 2 or any(value is None for value in values) or (not pick and not _is_range(values)):
        hint = "write {search: [0.2, 1.5]}, or {search: [a, b, c], choices: true}"
        faults.add("search takes two numbers, the lower first" if not pick else "choices are two or more", given, hint)
    if len(faults.found) > before:
        return None
    in_list = len(path) > 3 and path[0] == "steps" and path[2] == "schedules" and len(path) == 4
    known = tuple(value for value in values if value is not None)
    return Searched(".".join(path), known, pick, in_list, node.start)


def _plain(value: object) -> Value | None:
    if isinstance(value, Fraction):
        return float(value)
    return value if isinstance(value, int | str | bool) else None


def _is_range(values: list[Value | None]) -> bool:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return len(numbers) == len(values) == 2 and numbers[0] < numbers[1]
