"""mergekit's parameters: filters, gradients, and the precedence source → slice → module → global, as settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from surgeon.errors import nearest
from surgeon.recipe.document import Faults, Node, kind
from surgeon.recipe.mergekit_filters import targets
from surgeon.recipe.scalars import resolve
from surgeon.space.method import MergeMethod
from surgeon.space.parameters import Parameter

#: Every parameter mergekit 0.1.5 knows, for any method.
KNOWN = frozenset({
    "alpha", "density", "embed_slerp", "eps", "epsilon", "filter_wise", "gamma", "int8_mask", "lambda", "max_iter",
    "normalize", "normalize_weights", "nuslerp_flatten", "nuslerp_row_wise", "r", "rescale", "scale", "select_topk",
    "t", "tol", "weight",
})  # fmt: skip
_FLAGS = {"yes": True, "on": True, "no": False, "off": False, 1: True, 0: False}


class Parameters:
    """The settings that a mergekit recipe gives a method: of the step, and of each model.

    `levels` are the parameters that all models share, the nearest first.
    """

    def __init__(
        self,
        method: MergeMethod,
        where: Node,
        levels: Sequence[Node | None],
        faults: Faults,
        notes: list[str],
    ) -> None:
        self.method, self.faults, self.notes = method, faults, notes
        self.where, self.levels = where, levels
        other = {name for name, (_, differs) in method.mergekit.items() if not (differs and name in KNOWN)}
        other |= {"seed"}  # an option of mergekit's command line
        self.used = [parameter for name, parameter in method.parameters.items() if name not in other]

    def of_step(self, layers: range | None = None) -> dict[str, Node]:
        """The settings all models share, with those that give mergekit's semantics; each difference is noted."""
        for level in self.levels:
            self._note_ignored(level, "")
        found = self._given(self.levels, self.where, layers, per_model=False)
        theirs = {name: told for name, told in self.method.mergekit.items() if told[1] and name not in found}
        told = [f"mergekit's {self.method.name}: {differs}" for _, differs in theirs.values()]
        self.notes += [note for note in told if note not in self.notes]
        return found | {name: self.where.with_value(value) for name, (value, _) in theirs.items() if name}

    def of_model(self, model: str, entry: Node, layers: range | None = None) -> Node:
        """The settings of one model: its own first, then the shared ones; its weight must be given.

        Filters see a tensor by its name in the model; `layers` are those that are taken of it.
        """
        own = entry.get("parameters")
        self._note_ignored(own, model)
        return entry.with_value(self._given([own, *self.levels], entry, layers, per_model=True))

    def _given(
        self, levels: Sequence[Node | None], where: Node, layers: range | None, *, per_model: bool
    ) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for parameter in self.used:
            name = parameter.name
            given = [node for level in levels if level and (node := level.get(name))]
            if parameter.per_model != per_model:
                continue
            if given and (setting := self._setting(given, parameter, layers)):
                found[name] = setting
            elif name == "weight" or parameter.required:
                each = " for every model" if per_model else ""
                hint = f"parameters: {{{name}: 1.0}}"
                self.faults.add(f"mergekit's {self.method.name} needs {name}{each}", where, hint)
                found[name] = where.with_value(1)
        return found

    def _note_ignored(self, parameters: Node | None, model: str) -> None:
        """Note what mergekit knows and ignores here; faults are what it does not know or this version does not do."""
        if parameters and not isinstance(parameters.value, Mapping | None):
            self.faults.add(f"parameters is a mapping, not {kind(parameters)}", parameters)
        used = {parameter.name for parameter in self.used if parameter.per_model or not model}
        for name, node in (parameters.mapping if parameters else {}).items():
            if name in KNOWN and name not in used:
                where = f" of {model}" if model and name in self.method.parameters else ""
                note = f"{name}{where} has no effect with mergekit's {self.method.name}; ignored"
                self.notes += [note] if note not in self.notes else []
            elif name not in used:
                self.faults.add(f"unknown parameter {name!r}", node.start, nearest(name, {*used, *KNOWN}))

    def _setting(self, levels: list[Node], parameter: Parameter, layers: range | None) -> Node | None:
        """The rules of all levels in order, up to the first that fits every tensor; None where none fits any."""
        rules: list[Node] = []
        for pattern, value in (rule for level in levels for rule in self._rules(level)):
            value = _cast(value, parameter)
            if pattern is None and not rules:
                return Node(value.value, value.at, levels[0].key)
            fitting = None if pattern is None else targets(pattern, layers)
            if fitting is not None:
                rules.append(Node({"value": value, "targets": value.with_value(fitting)}, value.at))
            elif pattern is None:
                rules.append(Node({"value": value}, value.at))
                break
        return levels[0].with_value(tuple(rules)) if rules else None

    def _rules(self, node: Node) -> Iterator[tuple[str | None, Node]]:
        """A parameter's values in order: filter (None: always) and value."""
        if not node.mapping and not any(item.mapping for item in node.items):
            yield None, node
            return
        for item in (node,) if node.mapping else node.items:
            self.faults.unknown_keys(item, ("filter", "value"), "a conditional value")
            value, pattern = item.get("value"), item.get("filter")
            if value is None or (pattern and not pattern.text):
                self.faults.add("a conditional value is {filter: TEXT, value: VALUE}", item)
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
        try:
            value = resolve(value.strip())
        except ValueError:
            return node
    return node.with_value(value)
