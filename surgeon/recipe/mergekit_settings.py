"""mergekit's parameters: filters, gradients, and the precedence model → global, as native settings."""

from __future__ import annotations

from collections.abc import Iterator

from surgeon.errors import nearest
from surgeon.recipe.document import Node, Scalar, kind
from surgeon.recipe.faults import Faults
from surgeon.recipe.scalars import resolve
from surgeon.space.method import MergeMethod
from surgeon.space.parameters import Parameter
from surgeon.space.select import containing

#: Every parameter mergekit 0.1.5 knows, for any method.
KNOWN = frozenset({
    "alpha", "density", "embed_slerp", "eps", "epsilon", "filter_wise", "gamma", "int8_mask", "lambda", "max_iter",
    "normalize", "normalize_weights", "nuslerp_flatten", "nuslerp_row_wise", "r", "rescale", "scale", "select_topk",
    "t", "tol", "weight",
})  # fmt: skip
#: Native settings that mergekit does not have.
_NATIVE = {"elect", "over"}
_FLAGS = {"yes": True, "on": True, "no": False, "off": False, 1: True, 0: False}

_Rule = tuple[str | None, Node]


def note_ignored(method: MergeMethod, parameters: Node | None, model: str, faults: Faults, notes: list[str]) -> None:
    """Note what mergekit knows and ignores here, and as faults what it does not know or this version does not do."""
    if parameters is not None and not parameters.mapping:
        faults.add(f"parameters is a mapping, not {kind(parameters)}", parameters)
    used = {name for name, parameter in _used(method).items() if parameter.per_model or not model}
    for name, node in (parameters.mapping if parameters else {}).items():
        if name == "rescale" and method.name == "ties":
            if node.value not in (False, None):
                faults.add_at_key("rescale (matching the L1 norm after trimming) is not done by this version", node)
        elif name in KNOWN and name not in used:
            where = f" of {model}" if model and name in method.parameters else ""
            note = f"{name}{where} has no effect with mergekit's {method.name}; ignored"
            notes += [note] if note not in notes else []
        elif name not in used:
            faults.add_at_key(f"unknown parameter {name!r}", node, nearest(name, {*used, *KNOWN}))


def step_settings(method: MergeMethod, root: Node, faults: Faults, notes: list[str]) -> dict[str, Node]:
    """The settings all models share; `ties` elects signs on weighted task vectors, as mergekit does."""
    parameters = root.get("parameters")
    where = root.mapping["merge_method"]
    found: dict[str, Node] = {}
    for name, parameter in _used(method).items():
        if parameter.per_model:
            continue
        given = parameters.get(name) if parameters else None
        if given is not None:
            found[name] = _setting([given], parameter, faults)
        elif parameter.required:
            faults.add(f"{method.name} needs parameters.{name}", where)
            found[name] = Node(0, where.at, where.at)
    if "elect" in method.parameters:
        found["elect"] = Node("weighted", where.at, where.at)
    return found


def member_settings(method: MergeMethod, root: Node, entry: Node, faults: Faults) -> dict[str, Node]:
    """The settings of one model: its own first, then the global ones; its weight must be given."""
    levels = [node for node in (entry.get("parameters"), root.get("parameters")) if node is not None]
    found: dict[str, Node] = {}
    for name, parameter in _used(method).items():
        if not parameter.per_model:
            continue
        given = [node for level in levels if (node := level.get(name)) is not None]
        if given:
            found[name] = _setting(given, parameter, faults)
        elif name == "weight" or parameter.required:
            faults.add(f"mergekit's {method.name} needs {name} for every model", entry, f"parameters: {{{name}: 1.0}}")
            found[name] = Node(1, entry.at, entry.at)
    return found


def _used(method: MergeMethod) -> dict[str, Parameter]:
    return {name: parameter for name, parameter in method.parameters.items() if name not in _NATIVE}


def _setting(levels: list[Node], parameter: Parameter, faults: Faults) -> Node:
    """The rules of all levels in order, up to the first that fits every tensor."""
    first = levels[0]
    rules: list[_Rule] = []
    for rule in (rule for level in levels for rule in _rules(level, faults)):
        rules.append((rule[0], _cast(rule[1], parameter)))
        if rule[0] is None:
            break
    if rules and rules[0][0] is None:
        return Node(rules[0][1].value, rules[0][1].at, first.key)
    return Node(tuple(_rule_node(*rule) for rule in rules), first.at, first.key)


def _rule_node(pattern: str | None, value: Node) -> Node:
    entries = {"value": value}
    if pattern is not None:
        entries["targets"] = Node(containing(pattern), value.at, value.at)
    return Node(entries, value.at)


def _rules(node: Node, faults: Faults) -> Iterator[_Rule]:
    """A parameter's values in order: filter (None: always) and value."""
    if not node.mapping and not any(item.mapping for item in node.items):
        yield None, node
        return
    for item in (node,) if node.mapping else node.items:
        for key, inner in item.mapping.items():
            if key not in ("filter", "value"):
                hint = nearest(key, ("filter", "value"))
                faults.add_at_key(f"unknown key {key!r}; a conditional value has filter and value", inner, hint)
        value, pattern = item.get("value"), item.get("filter")
        if value is None or (pattern is not None and not pattern.text):
            faults.add("a conditional value is {filter: TEXT, value: VALUE}", item)
        else:
            yield pattern.text if pattern and pattern.text != "*" else None, value


def _cast(node: Node, parameter: Parameter) -> Node:
    """The value as mergekit casts it: numbers and flags may be written as words."""
    if isinstance(node.value, tuple):
        return node.with_value(tuple(_cast(item, parameter) for item in node.value))
    value = node.value
    if parameter.type is bool and not isinstance(value, bool) and isinstance(value, str | int):
        value = _FLAGS.get(value.lower() if isinstance(value, str) else value, value)
    elif parameter.type in (float, int) and isinstance(value, str):
        value = _number(value)
    return node.with_value(value)


def _number(text: str) -> Scalar:
    try:
        return resolve(text.strip())
    except ValueError:
        return text
