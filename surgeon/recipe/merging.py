"""A merge step: its base, its models, and the settings of both, checked against the method's signature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from surgeon.recipe.document import Node, words
from surgeon.recipe.faults import Faults
from surgeon.recipe.graph import Definition
from surgeon.recipe.settings import read_setting
from surgeon.space.expr import Expr, Member, Merge, Settings, settings
from surgeon.space.method import MergeMethod
from surgeon.space.registry import merge_methods


def read_merge(definition: Definition, known: Mapping[str, Expr], faults: Faults) -> Merge | None:
    """The merge a step means, or None with faults noted."""
    node = definition.node
    named, models = node.get("merge"), node.get("models")
    method = merge_methods().get(named.text) if named else None
    if method is None or models is None:
        return None
    base = node.get("base_model")
    _check_models(method, models, base, faults)
    own = {p.name for p in method.parameters.values() if p.per_model}
    members = tuple(
        Member(known[name], _settings(method, inner, own, faults)) for name, inner in words(models) if name in known
    )
    _check_required(method, node, models, faults)
    return Merge(
        method=method.name,
        members=members,
        base_model=known[base.text] if base and base.text and method.needs_base else None,
        settings=_settings(method, node, {*method.parameters}, faults),
        semantics=semantics.text if (semantics := node.get("semantics")) else "paper",
        name=definition.name,
        origin=node.key or node.at,
    )


def _settings(method: MergeMethod, node: Node, names: set[str], faults: Faults) -> Settings:
    """The settings written at a node, in canonical order."""
    found = {}
    for name in names:
        if (given := node.get(name)) is not None:
            value = read_setting(given, method.parameters[name], faults)
            if value is not None:
                found[name] = value
    return settings(found)


def _check_models(method: MergeMethod, models: Node, base: Node | None, faults: Faults) -> None:
    seen: set[str] = set()
    for name, inner in words(models):
        if name in seen:
            faults.add(f"{name!r} is listed twice", inner)
        if base is not None and name == base.text:
            faults.add_at_key(f"{name!r} is the base model; it is not listed among the models", inner)
        seen.add(name)
    least, most = method.models
    if len(seen) < least or (most is not None and len(seen) > most):
        besides = " besides the base" if method.needs_base else ""
        faults.add_at_key(f"{method.name} takes {_count(least, most)}{besides}, not {len(seen)}", models)


def _count(least: int, most: int | None) -> str:
    if most is None:
        return f"at least {least} model{'s' if least != 1 else ''}"
    return f"exactly {least} model{'s' if least != 1 else ''}" if least == most else f"{least} to {most} models"


def _check_required(method: MergeMethod, node: Node, models: Node, faults: Faults) -> None:
    """Required settings of models: each model gives its own, or the step gives one for all."""
    for name in _required(method):
        if node.get(name) is not None:
            continue
        for member, inner in words(models):
            if inner.get(name) is None:
                hint = f"write {member}: {{{name}: 0.5}}, or {name}: … at the step for all models"
                faults.add_at_key(f"{method.name} needs {name!r} for {member!r}", inner, hint)


def _required(method: MergeMethod) -> Iterator[str]:
    return (p.name for p in method.parameters.values() if p.per_model and p.required)
