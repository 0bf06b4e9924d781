"""`--set K=V`: values of a recipe replaced from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from surgeon.errors import Origin, RecipeError, nearest
from surgeon.recipe.document import Faults, Key, Node
from surgeon.recipe.yaml_text import read_value

_NAMED = (("models",), ("directions",), ("steps",))
#: Where a bare text replaces a file, the key that holds it in the long form of an entry.
_FILES: Mapping[tuple[Key, ...], str] = {("models",): "model", ("directions",): "file"}


def apply_overrides(root: Node, overrides: Mapping[str, str], faults: Faults) -> Node:
    """The tree with every override in place; what does not fit is noted."""
    for path, value in overrides.items():
        origin = Origin(f"--set {path}={value}", 1)
        try:
            new = _from_user(read_value(value, origin))
        except RecipeError as error:
            faults.found += error.faults
            continue
        root = _override(root, path.split("."), replace(new, key=origin), (), faults)
    return root


def _from_user(node: Node) -> Node:
    """The tree, marked as typed on the command line."""
    value = node.value
    if isinstance(value, Mapping):
        value = {key: _from_user(inner) for key, inner in value.items()}
    elif isinstance(value, tuple):
        value = tuple(_from_user(inner) for inner in value)
    return replace(node, value=value, from_user=True)


def _override(here: Node, keys: list[str], new: Node, path: tuple[Key, ...], faults: Faults) -> Node:
    """The node at `path` with what lies at `keys` below it replaced or added."""
    here = _with_settings(here, path)
    key = int(keys[0]) if here.items and keys[0].isdecimal() and len(keys[0]) < 7 else keys[0]
    inner = here.child(key)
    if inner is None and not _may_add(here, path, keys):
        known = here.mapping or [str(index) for index in range(len(here.items))]
        where = ".".join(map(str, path)) or "the recipe"
        faults.add(f"there is no {keys[0]!r} in {where}", new.at, nearest(keys[0], known))
        return here
    if len(keys) > 1:
        new = _override(inner or Node({}, new.at, new.at), keys[1:], new, (*path, key), faults)
    elif inner is not None and new.text and path in _FILES and _FILES[path] in inner.mapping:
        new = inner.with_child(_FILES[path], new)
    return here.with_child(key, new)


def _may_add(here: Node, path: tuple[Key, ...], keys: list[str]) -> bool:
    """Settings may be added; models, directions, steps and the models of a merge may only be replaced."""
    if len(keys) > 1:
        return (*path, keys[0]) == ("output",)
    holds_names = path in _NAMED or (path[:1] == ("steps",) and path[2:] == ("models",))
    return not holds_names and (isinstance(here.value, Mapping) or here.value is None)


def _with_settings(here: Node, path: tuple[Key, ...]) -> Node:
    """A merge's list of names as the mapping it is short for, so that settings can be added to a model."""
    is_short = (
        path[:1] == ("steps",) and path[2:] == ("models",) and here.items and all(item.text for item in here.items)
    )
    return here.with_value({item.text: Node(None, item.at, item.at) for item in here.items}) if is_short else here
