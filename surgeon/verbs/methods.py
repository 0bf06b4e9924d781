"""`list_methods`: the merge methods a recipe can name, as their signatures declare them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgeon.space.method import MergeMethod
    from surgeon.space.parameters import Parameter


@dataclass(frozen=True)
class Methods:
    """Merge methods by name; `in_full` when one was asked for."""

    methods: tuple[MergeMethod, ...]
    names: tuple[str, ...]
    in_full: bool = False

    def explain(self) -> str:
        """One line a method, or one method in full."""
        if self.in_full:
            return "\n\n".join(map(_in_full, self.names, self.methods))
        width = max(map(len, self.names), default=0)
        return "\n".join(
            f"{name:<{width}}  {method.summary}" for name, method in zip(self.names, self.methods, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """The methods with their settings."""
        return {name: _data(method) for name, method in zip(self.names, self.methods, strict=True)}


def list_methods(name: str | None = None) -> Methods:
    """Every registered merge method, or the one named. RefusedError with the nearest name when there is none."""
    from surgeon.space.registry import merge_method_named, merge_methods

    if name is not None:
        return Methods((merge_method_named(name),), (name,), in_full=True)
    found = merge_methods()
    return Methods(tuple(found.values()), tuple(found))


def _in_full(name: str, method: MergeMethod) -> str:
    lines = [
        name,
        "",
        inspect.getdoc(method.function) or "",
        "",
        f"models: {_count(method)}",
        f"base_model: {_base(method)}",
    ]
    lines += [f"blocks: {method.blocks}", "", *_settings(method)]
    if method.breaks:
        lines += ["", "does not keep:", *(f"  {law}: {reason}" for law, reason in method.breaks.items())]
    return "\n".join(lines)


def _settings(method: MergeMethod) -> list[str]:
    parameters = method.parameters.values()
    if not parameters:
        return ["no settings"]
    rows = [(parameter.name, _kind(parameter), _default(parameter)) for parameter in parameters]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return ["settings:", *(f"  {name:<{widths[0]}}  {kind:<{widths[1]}}  {default}" for name, kind, default in rows)]


def _kind(parameter: Parameter) -> str:
    kind = " | ".join(parameter.choices) or parameter.type.__name__
    bounds = f" in {parameter.range.text}" if parameter.range else ""
    return kind + bounds + (", one a model" if parameter.per_model else "")


def _default(parameter: Parameter) -> str:
    return "required" if parameter.required else f"default {_plain(parameter.default)}"


def _plain(default: Any) -> Any:
    """A default as data; `each(1.0)` is 1.0."""
    return getattr(default, "value", default)


def _count(method: MergeMethod) -> str:
    least, most = method.models
    return f"{least} or more" if most is None else str(least) if most == least else f"{least} to {most}"


def _base(method: MergeMethod) -> str:
    return "required" if method.needs_base else "not used"


def _data(method: MergeMethod) -> dict[str, Any]:
    return {
        "summary": method.summary,
        "documentation": inspect.getdoc(method.function) or "",
        "models": list(method.models),
        "needs_base": method.needs_base,
        "blocks": method.blocks,
        "settings": {name: _setting(parameter) for name, parameter in method.parameters.items()},
        "breaks": dict(method.breaks),
    }


def _setting(parameter: Parameter) -> dict[str, Any]:
    return {
        "type": parameter.type.__name__,
        "per_model": parameter.per_model,
        "required": parameter.required,
        "default": None if parameter.required else _plain(parameter.default),
        "choices": list(parameter.choices),
        "range": parameter.range.text if parameter.range else None,
    }
