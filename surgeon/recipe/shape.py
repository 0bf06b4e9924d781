"""A recipe's shape: unknown and missing keys, things of the wrong kind; pydantic finds them, this says them well."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from surgeon.errors import nearest
from surgeon.recipe.document import Key, Node, child, kind, plain
from surgeon.recipe.faults import Faults
from surgeon.recipe.schema import CombineStep, ModelEntry, OutputSection, merge_step, recipe_model
from surgeon.space.registry import merge_methods

_STEPS = ("merge", "combine")
_LATER_STEPS = ("edit", "reshape", "stack")
_LATER = {"directions": "directions are", "calibration": "calibration is", "tune": "tuning is"}
_EXPECTED = {
    "string_type": "a text",
    "dict_type": "a mapping of names",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "union_tag_not_found": "a mapping of names, or a list of them",
}


def check_shape(root: Node, faults: Faults) -> None:
    """Note every fault of the recipe's shape."""
    try:
        recipe_model().model_validate(plain(root))
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False):
            _note(root, found, faults)


def _note(root: Node, error: Any, faults: Faults) -> None:
    node, path, missing = _follow(root, error["loc"])
    type_ = error["type"]
    if type_ == "extra_forbidden":
        _unknown_key(root, node, path, faults)
    elif type_ == "missing":
        faults.add_at_key(f"{missing!r} is missing{_of(path)}", node)
    elif type_ == "string_pattern_mismatch":
        hint = "letters, digits and _, not starting with a digit; a hyphen would be a minus"
        faults.add_at_key(f"{path[-1]!r} is not a name", node, hint)
    elif path[:1] == ("steps",) and len(path) == 2 and type_.startswith(("union_tag", "model")):
        _step(node, path, faults)
    elif path == ("surgeon",):
        faults.add(f"this version reads recipes that say surgeon: 1, not {kind(node)}", node)
    elif type_ == "literal_error":
        faults.add(f"{_last(path)} is {error['ctx']['expected']}, not {kind(node)}", node)
    else:
        faults.add(f"{_last(path)} is {_EXPECTED.get(type_, error['msg'])}, not {kind(node)}", node)


def _follow(root: Node, loc: Iterable[Key]) -> tuple[Node, tuple[Key, ...], Key]:
    """The node pydantic means, its path, and the last key that is not in the recipe."""
    node, path, missing = root, (), ""
    for key in loc:
        inner = child(node, key)
        if inner is None:
            missing = key
        else:
            node, path = inner, (*path, key)
    return node, path, missing


def _of(path: tuple[Key, ...]) -> str:
    return f" in {'.'.join(map(str, path))}" if path else " in the recipe"


def _last(path: tuple[Key, ...]) -> str:
    return repr(path[-1]) if path else "a recipe"


def _unknown_key(root: Node, node: Node, path: tuple[Key, ...], faults: Faults) -> None:
    key = str(path[-1])
    if len(path) == 1 and key in _LATER:
        faults.add_at_key(f"{_LATER[key]} not in this version", node)
        return
    faults.add_at_key(f"unknown key {key!r}{_of(path[:-1])}", node, _hint(root, key, path))


def _hint(root: Node, key: str, path: tuple[Key, ...]) -> str:
    if path[0] == "models":
        return nearest(key, ModelEntry.model_fields)
    if path[0] == "output":
        return nearest(key, OutputSection.model_fields)
    if path[0] != "steps" or len(path) < 3:
        return nearest(key, recipe_model().model_fields)
    step = root.mapping["steps"].mapping[str(path[1])]
    if "merge" not in step.mapping:
        return nearest(key, CombineStep.model_fields)
    method = merge_methods()[step.mapping["merge"].text]
    if len(path) == 3:
        if key == "base_model":
            return f"{method.name} has no base model; list it among the models"
        return nearest(key, merge_step(method.name).model_fields)
    own = [parameter.name for parameter in method.parameters.values() if parameter.per_model]
    return "this is a setting of the step, not of a model" if key in method.parameters else nearest(key, own)


def _step(node: Node, path: tuple[Key, ...], faults: Faults) -> None:
    """A step that is neither a known merge nor a combination."""
    method = node.get("merge")
    later = next((word for word in _LATER_STEPS if word in node.mapping), None)
    if method is not None:
        name = method.text or kind(method)
        faults.add(f"there is no merge method {name!r}", method, nearest(name, merge_methods()))
    elif later:
        faults.add_at_key(f"{later} steps are not in this version; merge and combine are", node.mapping[later])
    else:
        hint = next((nearest(key, _STEPS) for key in node.mapping), "write combine: … or merge: METHOD")
        faults.add_at_key(f"step {path[-1]!r} has neither merge nor combine", node, hint)
