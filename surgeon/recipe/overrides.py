"""`--set K=V`: values of a recipe replaced from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from surgeon.errors import Origin, RecipeError, nearest
from surgeon.recipe.document import Key, Node, child, replaced
from surgeon.recipe.faults import Faults
from surgeon.recipe.yaml_text import read_value


def apply_overrides(root: Node, overrides: Mapping[str, str], faults: Faults) -> Node:
    """The tree with every override in place; what does not fit is noted."""
    for path, value in overrides.items():
        origin = Origin(f"--set {path}={value}", 1)
        try:
            new = _from_user(read_value(value, origin))
        except RecipeError as error:
            faults.found += error.faults
            continue
        root = _override(root, tuple(path.split(".")), replace(new, key=origin), faults)
    return root


def _from_user(node: Node) -> Node:
    """The tree, marked as typed on the command line."""
    value = node.value
    if isinstance(value, Mapping):
        value = {key: _from_user(inner) for key, inner in value.items()}
    elif isinstance(value, tuple):
        value = tuple(_from_user(inner) for inner in value)
    return replace(node, value=value, from_user=True)


def _override(root: Node, keys: tuple[str, ...], new: Node, faults: Faults) -> Node:
    path: tuple[Key, ...] = ()
    here = root
    for key in keys[:-1]:
        root, here = _named_list(root, path, here)
        step = _key(here, key)
        inner = child(here, step)
        if inner is None and (path, key) != ((), "output"):
            return _unknown(root, keys, key, here, new, faults)
        here = inner if inner is not None else Node({}, new.at, new.at)
        path = (*path, step)
    root, here = _named_list(root, path, here)
    last = _key(here, keys[-1])
    if child(here, last) is None and not _may_add(path, here):
        return _unknown(root, keys, keys[-1], here, new, faults)
    entry = child(here, last)
    within = ("model",) if path == ("models",) and entry is not None and entry.mapping and new.text else ()
    return replaced(root, (*path, last, *within), new)


def _key(here: Node, key: str) -> Key:
    return int(key) if here.items and key.isdecimal() and len(key) < 7 else key


def _may_add(path: tuple[Key, ...], here: Node) -> bool:
    """Settings may be added; models, steps and the models of a merge may only be replaced."""
    holds_names = path in (("models",), ("steps",)) or (path[:1] == ("steps",) and path[2:] == ("models",))
    return not holds_names and (isinstance(here.value, Mapping) or here.value is None)


def _named_list(root: Node, path: tuple[Key, ...], here: Node) -> tuple[Node, Node]:
    """A merge's list of names, made the mapping it is short for, so that settings can be added to a model."""
    if path[:1] != ("steps",) or path[2:] != ("models",) or not here.items:
        return root, here
    if not all(item.text for item in here.items):
        return root, here
    mapping = {item.text: Node(None, item.at, item.at) for item in here.items}
    here = here.with_value(mapping)
    return replaced(root, path, here), here


def _unknown(root: Node, keys: tuple[str, ...], key: str, here: Node, new: Node, faults: Faults) -> Node:
    known = here.mapping or [str(index) for index in range(len(here.items))]
    where = ".".join(keys[: keys.index(key)]) or "the recipe"
    faults.add(f"there is no {key!r} in {where}", new.at, nearest(key, known))
    return root
