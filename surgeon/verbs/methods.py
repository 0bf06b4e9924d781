"""`list_methods`: the merge methods, edits, reshapes and fitters a recipe can name, as they declare themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgeon.errors import RefusedError, nearest
from surgeon.verbs._table import table

if TYPE_CHECKING:
    from surgeon.space.edit import EditMethod
    from surgeon.space.fitter import Fitter
    from surgeon.space.method import MergeMethod
    from surgeon.space.parameters import Parameter
    from surgeon.space.reshape import Reshaping

#: Section → its heading, and what one of it is.
_TITLES = {
    "methods": ("merge methods", "merge method"),
    "edits": ("edits", "edit"),
    "reshapes": ("reshapes", "reshape"),
    "fitters": ("fitters of directions", "fitter of directions"),
}


#: The keys of a reshape's step that name what it is made of.
_OPERANDS = {
    ("of",): "of: NAME",
    ("of", "with"): "of: NAME, with: [NAME, …]",
    ("parts",): "parts: [{of: NAME, layers: 0..16, targets: PATTERN}, …]",
}


@dataclass(frozen=True)
class Methods:
    """What is registered: section (methods, edits, reshapes, fitters) → name → what it declares.

    `in_full` when one name was asked for.
    """

    sections: Mapping[str, Mapping[str, dict[str, Any]]]
    in_full: bool = False

    def explain(self) -> str:
        """Sections with one line a name, or one name in full."""
        if self.in_full:
            found = [(section, *item) for section, held in self.sections.items() for item in held.items()]
            return "\n\n".join("\n".join(_in_full(*one)) for one in found)
        return "\n\n".join("\n".join(_listed(section, held)) for section, held in self.sections.items())

    def to_dict(self) -> dict[str, Any]:
        """The same as data."""
        return {section: dict(held) for section, held in self.sections.items()}


def list_methods(name: str | None = None) -> Methods:
    """All that is registered, or what is called `name`. RefusedError with the nearest name when nothing is."""
    from surgeon.space.registry import edits, fitters, merge_methods, reshapes

    sections = {
        "methods": _described(merge_methods(), _merge_facts),
        "edits": _described(edits(), _edit_facts),
        "reshapes": _described(reshapes(), lambda reshape: {"operands": list(reshape.operands)}),
        "fitters": _described(fitters(), _fitter_facts),
    }
    if name is None:
        return Methods(sections)
    found = {section: {name: held[name]} for section, held in sections.items() if name in held}
    if not found:
        known = [known for held in sections.values() for known in held]
        raise RefusedError(f"there is no merge method, edit, reshape or fitter {name!r}", hint=nearest(name, known))
    return Methods(found, in_full=True)


def _described(registered: Mapping[str, Any], facts: Callable[[Any], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: _declared(one) | facts(one) for name, one in registered.items()}


def _declared(one: MergeMethod | EditMethod | Fitter | Reshaping) -> dict[str, Any]:
    """What every kind declares: documentation, papers, settings and the laws it breaks."""
    documentation = inspect.getdoc(getattr(one, "function", one)) or ""
    parameters: Mapping[str, Parameter] = getattr(one, "parameters", {})
    return {
        "summary": documentation.partition("\n")[0],
        "documentation": documentation,
        "papers": [url.rstrip(".") for url in re.findall(r"https?://[^\s,;)]+", documentation)],
        "settings": {name: _setting(parameter) for name, parameter in parameters.items()},
        "breaks": dict(getattr(one, "breaks", {})),
    }


def _setting(parameter: Parameter) -> dict[str, Any]:
    return {
        "type": getattr(parameter.type, "spelled", parameter.type.__name__),
        "per_model": parameter.per_model,
        "required": parameter.required,
        # `each(1.0)` is 1.0
        "default": None if parameter.required else getattr(parameter.default, "value", parameter.default),
        "choices": list(parameter.choices),
        "range": parameter.range.text if parameter.range else None,
    }


def _merge_facts(method: MergeMethod) -> dict[str, Any]:
    base = "required" if method.needs_base else "optional" if method.takes_base else "not used"
    facts = {"models": list(method.models), "base_model": base, "blocks": method.blocks}
    return facts | {"equivariant": method.equivariant}


def _edit_facts(method: EditMethod) -> dict[str, Any]:
    return {
        "needs_directions": method.needs_directions,
        "linear": method.linear,
        "blocks": method.blocks,
        "unchanged": dict(method.unchanged),
        "removes": dict(method.removes),
    }


def _fitter_facts(fitter: Fitter) -> dict[str, Any]:
    sets = {"positive": "required", "negative": "required"}
    if "neutral" in fitter.sets:
        sets["neutral"] = "required" if fitter.needs_neutral else "optional"
    return {"sets": sets, "second_moments": fitter.second_moments}


def _listed(section: str, held: Mapping[str, dict[str, Any]]) -> list[str]:
    return [f"{_TITLES[section][0]}:", *table((name, one["summary"]) for name, one in held.items())]


def _in_full(section: str, name: str, one: Mapping[str, Any]) -> list[str]:
    facts = {"methods": _merge_lines, "edits": _edit_lines, "reshapes": _reshape_lines, "fitters": _fitter_lines}
    lines = [f"{name}  ({_TITLES[section][1]})", "", one["documentation"], "", *facts[section](name, one), ""]
    settings = table(_row(*item) for item in one["settings"].items())
    lines += ["settings:", *settings] if settings else ["no settings"]
    if one["breaks"]:
        lines += ["", "does not keep:", *(f"  {law}: {reason}" for law, reason in one["breaks"].items())]
    return lines


def _merge_lines(name: str, one: Mapping[str, Any]) -> list[str]:
    least, most = one["models"]
    count = f"{least} or more" if most is None else str(least) if most == least else f"{least} to {most}"
    lines = [
        f"recipe: merge: {name}",
        f"models: {count}",
        f"base_model: {one['base_model']}",
        f"blocks: {one['blocks']}",
    ]
    return lines + ["adapters: merged in the space of their factors, without products"] * bool(one["equivariant"])


def _edit_lines(name: str, one: Mapping[str, Any]) -> list[str]:
    linear = "yes, in the weights" if one["linear"] else "no"
    lines = [f"recipe: edit: {name}", f"directions: {'required' if one['needs_directions'] else 'none'}"]
    lines += [f"linear: {linear}", f"blocks: {one['blocks']}"]
    promises = {"removes all of the directions": one["removes"], "changes nothing": one["unchanged"]}
    lines += ["other keys of the step: of, layers, writers, tied, allow_partial"]
    return [*lines, *(f"{said}: at {_values(settings)}" for said, settings in promises.items() if settings)]


def _reshape_lines(name: str, one: Mapping[str, Any]) -> list[str]:
    return [f"recipe: reshape: {name}", f"made of: {_OPERANDS[tuple(one['operands'])]}"]


def _fitter_lines(name: str, one: Mapping[str, Any]) -> list[str]:
    sets = ", ".join(f"{word} ({needed})" for word, needed in one["sets"].items())
    moments = "mean and second moments" if one["second_moments"] else "mean"
    lines = [f"recipe: fit: {name}", f"sets: {sets}", f"measured: {moments}, at each residual point"]
    return [*lines, "other keys of the entry: model, positive, negative, at"]


def _values(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())


def _row(name: str, setting: Mapping[str, Any]) -> tuple[str, ...]:
    free = [] if setting["choices"] and setting["type"] == "str" else [setting["type"]]
    kind = " | ".join([*setting["choices"], *free])
    bounds = f" in {setting['range']}" if setting["range"] else ""
    each = ", one a model" if setting["per_model"] else ""
    default = setting["default"]
    spelled = str(default).lower() if isinstance(default, bool) else "none" if default == "" else default
    return f"  {name}", kind + bounds + each, "required" if setting["required"] else f"default {spelled}"
