"""A native recipe's tree → the expression it means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from surgeon.errors import nearest
from surgeon.recipe.arithmetic import ArithmeticFault, evaluate
from surgeon.recipe.document import Node, kind
from surgeon.recipe.faults import Faults
from surgeon.recipe.graph import Definition, Graph, origin_within, read_graph
from surgeon.recipe.merging import read_merge
from surgeon.recipe.names import probed_reference, reference
from surgeon.recipe.settings import read_schedule
from surgeon.recipe.shape import check_shape
from surgeon.space.coefficient import Coefficient
from surgeon.space.expr import Combination, Expr, Model
from surgeon.space.output import Output, Recipe
from surgeon.space.select import check_pattern
from surgeon.tensors import FLOATS, parse_bytes, stored_dtype


def read_native(root: Node, folder: Path, faults: Faults) -> Recipe:
    """The recipe a tree means; RecipeError with all its faults, those noted before included."""
    check_shape(root, faults)
    graph = read_graph(root, faults)
    built: dict[str, Expr] = {}
    for name in graph.order:
        definition = graph.definitions[name]
        built[name] = _built(definition, built, graph, folder, faults) or Model(f"?{name}")
    output = _output(root.get("output"), built, faults)
    faults.check()
    return Recipe(built[graph.result], output)


def _built(definition: Definition, built: dict[str, Expr], graph: Graph, folder: Path, faults: Faults) -> Expr | None:
    """A model's or step's expression, or None with faults noted. Names not known stand for themselves meanwhile."""
    known = built | {use.name: Model(f"?{use.name}") for use in definition.uses if use.name not in built}
    if definition.section == "models":
        return _model(definition, known, folder, faults)
    if definition.postfix:
        return _combination(definition, known, graph, faults)
    return read_merge(definition, known, faults)


def _model(definition: Definition, known: dict[str, Expr], folder: Path, faults: Faults) -> Model | None:
    node = definition.node
    written = node.get("model") if node.mapping else node
    if written is None or not isinstance(written.value, str):
        return None
    try:
        ref = probed_reference(written.text) if written.from_user else reference(written.text, folder)
    except ValueError as error:
        faults.add(str(error), written)
        return None
    base = known[definition.uses[0].name] if definition.uses else None
    return Model(ref, base, probe=written.from_user, name=definition.name, origin=node.key)


def _combination(definition: Definition, known: dict[str, Expr], graph: Graph, faults: Faults) -> Expr | None:
    node = definition.node
    combine = node.mapping["combine"]
    values: dict[str, Expr | Coefficient] = {**known}
    schedules = node.get("schedules")
    for name, given in schedules.mapping.items() if schedules else ():
        if name in graph.definitions:
            faults.add_at_key(f"{name!r} is the name of a model or step already", given)
        schedule = read_schedule(name, given, faults)
        values[name] = Coefficient.of(schedule if schedule is not None else 1)
    try:
        expr = evaluate(definition.postfix, values)
    except ArithmeticFault as fault:
        faults.add(fault.message, origin_within(combine, fault.at), fault.hint)
        return None
    return replace(expr, origin=combine.at) if isinstance(expr, Combination) else expr


def _output(node: Node | None, built: dict[str, Expr], faults: Faults) -> Output:
    if node is None:
        return Output()
    files_from, rounding = node.get("files_from"), node.get("rounding")
    if rounding and rounding.text == "compensated":
        faults.add("compensated rounding needs an edit with an invariant, which this version does not have", rounding)
    return Output(
        dtype=_dtype(node.get("dtype"), faults),
        shard_size=_shard_size(node.get("shard_size"), faults),
        files_from=built.get(files_from.text) if files_from else None,
        drop=tuple(_drop(node.get("drop"), faults)),
        origin=node.key or node.at,
    )


def _dtype(node: Node | None, faults: Faults) -> str | None:
    if node is None:
        return None
    try:
        return stored_dtype(node.text)
    except ValueError:
        faults.add(
            f"dtype is {', '.join(FLOATS.values())}, not {kind(node)}", node, nearest(node.text, FLOATS.values())
        )
        return None


def _shard_size(node: Node | None, faults: Faults) -> int | None:
    if node is None:
        return None
    if isinstance(node.value, int) and not isinstance(node.value, bool) and node.value > 0:
        return node.value
    try:
        return parse_bytes(node.text)
    except (ValueError, OverflowError):
        faults.add(f"shard_size is a size such as 5GB or 400MB, not {kind(node)}", node)
        return None


def _drop(node: Node | None, faults: Faults) -> Iterator[str]:
    for item in node.items if node else ():
        try:
            yield check_pattern(item.text)
        except (ValueError, OverflowError, RecursionError) as error:
            faults.add(str(error), item)
