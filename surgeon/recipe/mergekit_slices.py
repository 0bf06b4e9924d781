"""mergekit's `models` and `slices` → native steps: cuts of models, a merge a slice, the slices on top of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from surgeon.recipe.document import Faults, Node, kind
from surgeon.recipe.mergekit_references import References
from surgeon.recipe.mergekit_settings import Parameters
from surgeon.space.method import MergeMethod

_SLICE = ("sources", "parameters", "base_model", "residual_weight")
_SOURCE = ("model", "layer_range", "parameters")


class Source(NamedTuple):
    """One model of a merge: what the step takes, the model's own name, its entry, the layers taken of it."""

    of: str
    model: str
    entry: Node
    layers: range | None = None


@dataclass(frozen=True)
class Scope:
    """What holds for a merge: method, base model, the levels of parameters from the nearest outwards.

    `layers` are mergekit's numbers of the result's layers, in a slice.
    """

    where: Node
    method: MergeMethod
    base: Node | None
    levels: tuple[Node | None, ...]
    references: References
    faults: Faults
    notes: list[str]
    layers: range | None = None

    @property
    def copies(self) -> bool:
        """Whether models are taken as they are: passthrough, unless something is scaled."""
        return self.where.text == "passthrough" and not any(level and level.get("scale") for level in self.levels)


def of_models(root: Node, scope: Scope, name: str) -> str:
    """The step that merges the models listed."""
    models = root.mapping["models"]
    if not models.items:
        scope.faults.add(f"models is a list of {{model: …, parameters: …}}, not {kind(models)}", models.start)
    sources: dict[str, Source] = {}
    for entry in models.items:
        scope.faults.unknown_keys(entry, ("model", "parameters"), "a model's entry")
        model = entry.get("model")
        if model is None:
            scope.faults.add("an entry of models is {model: …, parameters: …}; this has no model", entry)
        elif (of := scope.references.name(model)) in sources:
            scope.faults.add(f"{scope.references.spelled(model)} is listed twice", model)
        elif of is not None:
            sources[of] = Source(of, of, entry)
    base = scope.references.name(scope.base) if scope.base else None
    if base and scope.base and base not in sources:
        if not scope.method.takes_base:
            note = f"base_model: mergekit's {scope.method.name} has none; it is one more model, as mergekit has it"
            scope.notes.append(note)
        sources[base] = Source(base, base, scope.base.with_value({}))
    return merged(list(sources.values()), scope, name)


def merged(sources: Sequence[Source], scope: Scope, name: str) -> str:
    """The step that merges sources; the base model is among them."""
    method, where = scope.method, scope.where
    base = scope.references.name(scope.base) if scope.base else None
    parameters = Parameters(method, where, scope.levels, scope.faults, scope.notes)
    step = {"merge": where, "semantics": where.with_value("mergekit"), **parameters.of_step(scope.layers)}
    models = list(sources)
    if method.needs_base or (method.takes_base and scope.base):
        found = next((source for source in sources if source.model == base), None)
        if scope.base is None:
            scope.faults.add(f"{method.name} needs base_model", where)
        elif found is None:
            message = f"the base model {scope.references.spelled(scope.base)} is not among the sources of this slice"
            scope.faults.add(message, sources[0].entry, "list it, with its layer_range")
        else:
            models.remove(found)
            if found.entry.get("parameters"):
                note = f"parameters of the base model have no effect with {method.name}"
                scope.notes.extend([note] if note not in scope.notes else [])
        step["base_model"] = (scope.base or where).with_value(found.of if found else "m0")
    each = {source.of: parameters.of_model(source.model, source.entry, source.layers) for source in models}
    step["models"] = where.with_value(each)
    return scope.references.step(name, where.with_value(step))


def of_slices(root: Node, scope: Scope, name: str) -> str:
    """The step that puts the slices on top of each other; a single one that is merged is the result itself."""
    slices = root.mapping["slices"]
    if not slices.items:
        scope.faults.add(
            f"slices is a list of {{sources: [{{model: …, layer_range: …}}]}}, not {kind(slices)}", slices.start
        )
    parts: list[Node] = []
    done = 0
    for entry in slices.items:
        scope.faults.unknown_keys(entry, _SLICE, "a slice")
        if entry.get("residual_weight"):
            scope.notes.append("residual_weight: mergekit never reads it; ignored")
        sources = _sources(entry, scope)
        count = len(sources[0].layers or ()) if sources else 0
        inner = replace(
            scope,
            base=entry.get("base_model") or scope.base,
            levels=(entry.get("parameters"), *scope.levels),
            layers=range(done, done + count),
        )
        done += count
        if sources:
            parts.append(_part(sources, inner, name if len(slices.items) == 1 else "slice"))
    if len(parts) == 1 and "layers" not in parts[0].mapping:
        return parts[0].mapping["of"].text
    step = {"reshape": scope.where.with_value("stack"), "parts": slices.with_value(tuple(parts))}
    return scope.references.step(name, slices.with_value(step))


def _part(sources: Sequence[Source], scope: Scope, name: str) -> Node:
    """What a slice is in the stack: layers of one model as they are, or of a merge of cuts."""
    first = sources[0]
    parameters = first.entry.get("parameters")
    if scope.copies and len(sources) == 1 and first.layers and not (parameters and parameters.get("scale")):
        return _taken(first.model, first.layers, first.entry)
    cut = []
    for source in sources:
        assert source.layers is not None
        part = _taken(source.model, source.layers, source.entry)
        step = {"reshape": part.with_value("stack"), "parts": part.with_value((part,))}
        called = f"{source.model}_{source.layers.start}_{source.layers.stop}"
        cut.append(source._replace(of=scope.references.step(called, part.with_value(step), again=False)))
    made = merged(cut, scope, name)
    return first.entry.with_value({"of": first.entry.with_value(made)})


def _taken(model: str, layers: range, entry: Node) -> Node:
    span = entry.with_value(f"{layers.start}..{layers.stop}")
    return entry.with_value({"of": entry.with_value(model), "layers": span})


def _sources(entry: Node, scope: Scope) -> list[Source]:
    """The sources of a slice: each model once, all of one length."""
    found: dict[str, Source] = {}
    listed = entry.get("sources")
    if listed is None or not listed.items:
        scope.faults.add("a slice is {sources: [{model: …, layer_range: [first, end]}]}", entry)
    for source in listed.items if listed else ():
        scope.faults.unknown_keys(source, _SOURCE, "a source of a slice")
        model, layers = source.get("model"), _range(source, scope.faults)
        name = scope.references.name(model) if model else None
        if model is None:
            scope.faults.add("a source is {model: …, layer_range: …}; this has no model", source)
        elif name in found:
            hint = "a native recipe can: give each run a step of its own (reshape: stack)"
            scope.faults.add(f"{scope.references.spelled(model)} is listed twice in one slice", model, hint)
        elif name is not None and layers is not None:
            found[name] = Source(name, name, source, layers)
    sources = list(found.values())
    lengths = {len(source.layers or ()) for source in sources}
    if len(lengths) > 1:
        told = " and ".join(map(str, sorted(lengths)))
        scope.faults.add(f"the sources of a slice have different numbers of layers: {told}", entry)
    return sources


def _range(source: Node, faults: Faults) -> range | None:
    node = source.get("layer_range")
    ends = [item.value for item in node.items] if node else []
    if node is None:
        faults.add("'layer_range' is missing in a source of a slice", source)
    elif len(ends) != 2 or not all(type(end) is int for end in ends):
        faults.add(f"layer_range is [first, end], two whole numbers, not {kind(node)}", node)
    elif isinstance(first := ends[0], int) and isinstance(end := ends[1], int):
        if 0 <= first < end:
            return range(first, end)
        faults.add(f"layer_range [{first}, {end}] holds no layer; the end is not part of it", node)
    return None
