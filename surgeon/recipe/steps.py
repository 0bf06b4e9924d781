"""Entries of `models:` and `steps:`: the names each kind uses, and the expression it means.

A further kind of step is one more entry of `STEP_KINDS`, and its shape in `schema.recipe_model`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction

from surgeon.recipe.arithmetic import ArithmeticFault, evaluate, names
from surgeon.recipe.document import Faults, Node, kind
from surgeon.recipe.edits import EDIT, RESHAPE
from surgeon.recipe.entries import Entry, Kind, Use, used
from surgeon.recipe.names import probed_reference, reference
from surgeon.space.coefficient import Coefficient
from surgeon.space.expr import Combination, Expr, Member, Merge, Model
from surgeon.space.method import MergeMethod
from surgeon.space.registry import merge_methods
from surgeon.space.schedule import Rule, Rules


def model_uses(node: Node) -> tuple[Use, ...]:
    """The base of an adapter, where there is one."""
    return used(node, "base_model")


def build_model(entry: Entry, faults: Faults) -> Model | None:
    """A checkpoint or adapter, and what an adapter's replaced tensors are differences from."""
    written = entry.node.get("model") if entry.node.mapping else entry.node
    if written is None or not isinstance(written.value, str):
        return None
    try:
        ref = probed_reference(written.text) if written.from_user else reference(written.text, entry.folder)
    except ValueError as error:
        faults.add(str(error), written)
        return None
    base = next((entry.known[use.name] for use in used(entry.node, "base_model")), None)
    return Model(ref, base, probe=written.from_user, name=entry.name, origin=entry.node.key)


def combine_uses(node: Node) -> tuple[Use, ...] | None:
    """The names in the arithmetic that are no schedules."""
    combine = node.mapping["combine"]
    tokens = names(_arithmetic(combine))
    if tokens is None:
        return None
    declared = dict(node.named("schedules"))
    return tuple(Use(token.text, combine.inside(token.at)) for token in tokens if token.text not in declared)


def build_combination(entry: Entry, faults: Faults) -> Expr | None:
    """Arithmetic over models, adapters and steps, with schedules by name."""
    combine = entry.node.mapping["combine"]
    text = _arithmetic(combine)
    if text == "?":
        faults.add(f"combine takes arithmetic over names, not {kind(combine)}", combine)
        return None
    try:
        expr = evaluate(text, {**entry.known, **dict(_schedules(entry, text, faults))})
    except ArithmeticFault as fault:
        faults.add(fault.message, combine.inside(fault.at), fault.hint)
        return None
    return replace(expr, origin=combine.at) if isinstance(expr, Combination) else expr


def _arithmetic(combine: Node) -> str:
    """The arithmetic, which may be a bare number; for what is neither, a text that is no arithmetic."""
    if isinstance(combine.value, int | Fraction) and not isinstance(combine.value, bool):
        return str(combine.value)
    return combine.text or "?"


def _schedules(entry: Entry, text: str, faults: Faults) -> Iterator[tuple[str, Coefficient]]:
    """What the declared names mean: stand-ins, where the recipe has faults."""
    used = names(text)
    for name, given in entry.node.named("schedules"):
        if name in entry.names:
            faults.add(f"{name!r} is the name of a model or step already", given.start)
        if used is not None and name not in {token.text for token in used}:
            faults.add(f"schedule {name!r} is not used", given.start)
        schedule = entry.read.schedules[name] if entry.read else Rules((Rule(name, Fraction(1)),))
        yield name, Coefficient.of(replace(schedule, name=name))


def merge_uses(node: Node) -> tuple[Use, ...] | None:
    """The base, the models, and the models of what is measured."""
    levels = (node, *(inner for _, inner in node.named("models")))
    fits = (use for level in levels for setting in level.mapping.values() for use in _measured_on(setting))
    return (*used(node, "base_model"), *(Use(name, inner.start) for name, inner in node.named("models")), *fits) or None


def _measured_on(setting: Node) -> tuple[Use, ...]:
    """The model that a setting is measured on, where it is a fit and says so."""
    return used(setting, "model") if "fit" in setting.mapping else ()


def build_merge(entry: Entry, faults: Faults) -> Merge | None:
    """A registered method over models, with its base and the settings of both."""
    node, read = entry.node, entry.read
    method = merge_methods().get(node.mapping["merge"].text)
    if method is None or node.get("models") is None:
        return None
    _check_models(method, node, faults)
    _check_required(method, node, faults)
    if read is None:
        return None
    own = read.models if isinstance(read.models, dict) else {}
    base = read.base_model if method.takes_base else None
    members = [
        Member(entry.known[name], entry.settings(method.parameters, own.get(name), inner))
        for name, inner in node.named("models")
    ]
    return Merge(
        method=method.name,
        members=tuple(members),
        base_model=None if base is None else entry.known[base],
        settings=entry.settings(method.parameters, read, node),
        semantics=read.semantics or "paper",
        name=entry.name,
        origin=node.start,
    )


def _check_models(method: MergeMethod, node: Node, faults: Faults) -> None:
    base = node.get("base_model")
    seen: set[str] = set()
    for name, inner in node.named("models"):
        if name in seen:
            faults.add(f"{name!r} is listed twice", inner)
        if base is not None and name == base.text:
            faults.add(f"{name!r} is the base model; it is not listed among the models", inner.start)
        seen.add(name)
    least, most = method.models
    if len(seen) < least or (most is not None and len(seen) > most):
        count = f"at least {least}" if most is None else f"exactly {least}" if least == most else f"{least} to {most}"
        models = "model" if least == 1 and most in (1, None) else "models"
        besides = " besides the base" if method.needs_base else ""
        faults.add(f"{method.name} takes {count} {models}{besides}, not {len(seen)}", node.mapping["models"].start)


def _check_required(method: MergeMethod, node: Node, faults: Faults) -> None:
    """Required settings of models: each model gives its own, or the step gives one for all."""
    needed = [name for name, each in method.parameters.items() if each.per_model and each.required]
    for name in needed:
        for member, inner in node.named("models"):
            if node.get(name) is None and inner.get(name) is None:
                told = f"./{member}.safetensors" if method.parameters[name].per_tensor else "0.5"
                hint = f"write {member}: {{{name}: {told}}}, or {name}: … at the step for all models"
                faults.add(f"{method.name} needs {name!r} for {member!r}", inner.start, hint)


MODEL = Kind(model_uses, build_model)
#: Every kind of step, by the key that tells it.
STEP_KINDS: Mapping[str, Kind] = {
    "merge": Kind(merge_uses, build_merge),
    "edit": EDIT,
    "reshape": RESHAPE,
    "combine": Kind(combine_uses, build_combination),
}
