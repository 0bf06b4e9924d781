"""A recipe read by its shape: unknown and missing keys, wrong kinds and values; pydantic finds them, this tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from surgeon.errors import nearest
from surgeon.recipe.document import Faults, Key, Node, kind, plain
from surgeon.recipe.schema import CombineStep, ModelEntry, OutputSection, merge_step, recipe_model
from surgeon.recipe.schema_edits import FileEntry, PartEntry, edit_step, fit_entry, reshape_step
from surgeon.recipe.schema_tune import TuneSection
from surgeon.recipe.setting_types import RULE, Strict, Wrong
from surgeon.space.registry import edits, fitters, merge_methods, reshapes

_SECTIONS: Mapping[str, type[Strict]] = {"models": ModelEntry, "output": OutputSection, "tune": TuneSection}
_LATER = {"calibration": "calibration is"}
_STEPS: Mapping[str, tuple[str, Callable[[], Iterable[str]]]] = {
    "merge": ("merge method", merge_methods),
    "edit": ("edit", edits),
    "reshape": ("reshape", reshapes),
}
_EXPECTED = {
    "string_type": "a text",
    "dict_type": "a mapping of names",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "union_tag_not_found": "a mapping of names, or a list of them",
}


def read_shape(root: Node, faults: Faults) -> Any:
    """The recipe as `schema` models it, or None with every fault of its shape noted."""
    try:
        return recipe_model().model_validate(plain(root))
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False):
            _note(root, found, faults)
        return None


def _note(root: Node, error: Any, faults: Faults) -> None:
    type_, context = error["type"], error.get("ctx", {})
    wrong = context.get("error")
    inside = wrong.path if isinstance(wrong, Wrong) else ()
    node, path, missing = _follow(root, (*error["loc"], *inside))
    what, last = f"not {kind(node)}", repr(path[-1]) if path else "a recipe"
    if isinstance(wrong, Wrong):
        faults.add(str(wrong), node, wrong.hint)
    elif type_ == "extra_forbidden":
        _unknown_key(root, node, path, faults)
    elif type_ == "missing":
        faults.add(f"{missing!r} is missing{_of(path)}", node.start)
    elif type_ == "string_pattern_mismatch":
        hint = "letters, digits and _, not starting with a digit; a hyphen would be a minus"
        faults.add(f"{last} is not a name", node.start, hint)
    elif path[:1] == ("steps",) and len(path) == 2 and type_.startswith(("union_tag", "model")):
        _step(node, str(path[-1]), faults)
    elif path[:1] == ("directions",) and len(path) == 2 and type_.startswith(("union_tag", "model")):
        _direction(node, str(path[-1]), faults)
    elif path == ("surgeon",):
        faults.add(f"this version reads recipes that say surgeon: 1, {what}", node)
    elif type_ == "too_short":
        faults.add(f"{last} is empty", node)
    elif type_ == "literal_error":
        faults.add(f"{last} is {context['expected']}, {what}", node)
    else:
        faults.add(f"{last} is {_EXPECTED.get(type_, error['msg'])}, {what}", node)


def _follow(root: Node, loc: tuple[Key, ...]) -> tuple[Node, tuple[Key, ...], Key]:
    """The node pydantic means, its path, and the last key that is not in the recipe: one missing, or a union's tag."""
    node, path, missing = root, (), ""
    for key in loc:
        inner = node.child(key)
        if inner is None:
            missing = key
        else:
            node, path = inner, (*path, key)
    return node, path, missing


def _of(path: tuple[Key, ...]) -> str:
    return f" in {'.'.join(map(str, path))}" if path else " in the recipe"


def _unknown_key(root: Node, node: Node, path: tuple[Key, ...], faults: Faults) -> None:
    *place, key = map(str, path)
    if not place and key in _LATER:
        faults.add(f"{_LATER[key]} not in this version", node.start)
        return
    known: Iterable[str] = recipe_model().model_fields
    hint = ""
    if place and place[-1].isdecimal():
        known = PartEntry.model_fields if place[-2] == "parts" else RULE
    elif place and place[0] in _SECTIONS:
        known = _SECTIONS[place[0]].model_fields
    elif place and place[0] == "directions":
        fit = root.mapping["directions"].mapping[place[1]].get("fit")
        known = (fit_entry(fit.text) if fit else FileEntry).model_fields
    elif place:
        known, hint = _step_keys(root.mapping["steps"].mapping[place[1]], key, inside=len(place) > 2)
    faults.add(f"unknown key {key!r}{_of(path[:-1])}", node.start, hint or nearest(key, known))


def _step_keys(step: Node, key: str, *, inside: bool) -> tuple[Iterable[str], str]:
    """The keys a step, or one of its models, can have; and a hint where a key is wrong for a reason of its own."""
    if merge := step.get("merge"):
        method = merge_methods()[merge.text]
        if inside:
            own = [parameter.name for parameter in method.parameters.values() if parameter.per_model]
            return own, "this is a setting of the step, not of a model" if key in method.parameters else ""
        hint = f"{method.name} has no base model; list it among the models" if key == "base_model" else ""
        return merge_step(merge.text).model_fields, hint
    if edit := step.get("edit"):
        hint = f"{edit.text} works along no direction" if key == "directions" else ""
        return edit_step(edit.text).model_fields, hint
    if reshape := step.get("reshape"):
        return [name.rstrip("_") for name in reshape_step(reshape.text).model_fields], ""
    return CombineStep.model_fields, ""


def _direction(node: Node, name: str, faults: Faults) -> None:
    """A direction that is neither a file nor a known fit."""
    fit = node.get("fit")
    if fit is not None:
        word = fit.text or kind(fit)
        faults.add(f"there is no fitter {word!r}", fit, nearest(word, fitters()))
    elif isinstance(node.value, Mapping):
        hint = next((nearest(key, ("file", "fit")) for key in node.mapping), "write file: PATH or fit: FITTER")
        faults.add(f"direction {name!r} has neither file nor fit", node.start, hint)
    else:
        faults.add(f"{name!r} is a path, or a mapping with file: or fit:, not {kind(node)}", node)


def _step(node: Node, name: str, faults: Faults) -> None:
    """A step that is neither a known merge, edit or reshape nor a combination."""
    for key, (what, registered) in _STEPS.items():
        if (named := node.get(key)) is not None:
            word = named.text or kind(named)
            faults.add(f"there is no {what} {word!r}", named, nearest(word, registered()))
            return
    words = ("merge", "combine", "edit", "reshape")
    hint = next((nearest(key, words) for key in node.mapping), "write combine: … or merge: METHOD")
    for key, (_, registered) in _STEPS.items():
        hint = next((f"write {key}: {word}" for word in node.mapping if word in registered()), hint)
    faults.add(f"step {name!r} has none of {', '.join(words)}", node.start, hint)
