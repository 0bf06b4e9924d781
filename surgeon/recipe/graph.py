"""What a recipe defines and who uses what: unknown and unused names, circles, the order to build in, the result."""

from __future__ import annotations

import difflib
import graphlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from surgeon.errors import Origin, nearest
from surgeon.recipe.arithmetic import ArithmeticFault, Postfix, names, parse
from surgeon.recipe.document import Node, kind, words
from surgeon.recipe.faults import Faults

LARGEST = 100_000
"""Bound on an expression's size when every shared step is written out."""


@dataclass(frozen=True)
class Use:
    """A name used somewhere."""

    name: str
    origin: Origin


@dataclass(frozen=True)
class Definition:
    """A model or step: its entry, the names it uses, and a combination's arithmetic.

    An `opaque` one is faulty in a way that hides what it uses.
    """

    name: str
    section: str
    node: Node
    uses: tuple[Use, ...] = ()
    postfix: Postfix = ()
    opaque: bool = False


@dataclass(frozen=True)
class Graph:
    """All definitions, in an order in which each comes after what it uses, and the result's name."""

    definitions: Mapping[str, Definition]
    order: tuple[str, ...]
    result: str


def read_graph(root: Node, faults: Faults) -> Graph:
    """The graph of a recipe, with its faults noted; RecipeError where there is no order to build in."""
    found: dict[str, Definition] = {}
    for definition in (*_models(root), *_steps(root, faults)):
        if definition.name in found:
            faults.add_at_key(f"{definition.name!r} is the name of a model already", definition.node)
        found[definition.name] = definition
    output = root.get("output")
    files_from = output.get("files_from") if output else None
    extra = (Use(files_from.text, files_from.at),) if files_from and files_from.text else ()
    meant = _unknown(found, extra, faults)
    order = _order(found, faults)
    _sizes(found, order, faults)
    return Graph(found, order, _result(root, found, extra, meant, faults))


def origin_within(node: Node, at: int) -> Origin:
    """The place of a character of a text; the text's start where the file spells it otherwise."""
    here = node.at
    return Origin(here.file, here.line, here.column + at) if node.verbatim else here


def arithmetic_text(node: Node) -> str:
    """The text of a combination, which may be a bare number."""
    return node.text if isinstance(node.value, str) else str(node.value)


def _models(root: Node) -> Iterator[Definition]:
    for name, node in words(root.get("models")):
        base = node.get("base_model")
        yield Definition(name, "models", node, (Use(base.text, base.at),) if base and base.text else ())


def _steps(root: Node, faults: Faults) -> Iterator[Definition]:
    for name, node in words(root.get("steps")):
        combine = node.get("combine")
        if combine is not None and node.get("merge") is None:
            yield _combination(name, node, combine, faults)
        else:
            base = node.get("base_model")
            uses = [Use(base.text, base.at)] if base and base.text else []
            models = node.get("models")
            uses += [Use(used, inner.key or inner.at) for used, inner in words(models)]
            yield Definition(name, "steps", node, tuple(uses), opaque=not uses)


def _combination(name: str, node: Node, combine: Node, faults: Faults) -> Definition:
    if isinstance(combine.value, tuple | Mapping | bool):
        faults.add(f"combine takes arithmetic over names, not {kind(combine)}", combine)
        return Definition(name, "steps", node, opaque=True)
    try:
        postfix = parse(arithmetic_text(combine))
    except ArithmeticFault as fault:
        faults.add(fault.message, origin_within(combine, fault.at), fault.hint)
        return Definition(name, "steps", node, opaque=True)
    schedules = node.get("schedules")
    declared = schedules.mapping if schedules else {}
    used = {token.text for token in names(postfix)}
    for unused in declared.keys() - used:
        faults.add_at_key(f"schedule {unused!r} is not used", declared[unused])
    uses = [Use(token.text, origin_within(combine, token.at)) for token in names(postfix) if token.text not in declared]
    return Definition(name, "steps", node, tuple(uses), postfix)


def _unknown(found: Mapping[str, Definition], extra: tuple[Use, ...], faults: Faults) -> set[str]:
    """Note names that nothing has; gives those that were probably meant."""
    meant: set[str] = set()
    for definition in (*found.values(), None):
        schedules = definition.node.get("schedules") if definition else None
        known = {*found} - {definition.name if definition else ""} | {*(schedules.mapping if schedules else ())}
        for use in definition.uses if definition else extra:
            if use.name not in found:
                faults.add(f"nothing is called {use.name!r}", use.origin, nearest(use.name, known))
                meant.update(difflib.get_close_matches(use.name, known, n=1))
    return meant


def _order(found: Mapping[str, Definition], faults: Faults) -> tuple[str, ...]:
    graph = {name: [use.name for use in definition.uses if use.name in found] for name, definition in found.items()}
    try:
        return tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        circle = error.args[1]
        faults.add_at_key(f"{' uses '.join(reversed(circle))}: a circle", found[circle[0]].node)
        faults.check()
        raise


def _sizes(found: Mapping[str, Definition], order: tuple[str, ...], faults: Faults) -> None:
    sizes: dict[str, int] = {}
    depths: dict[str, int] = {}
    for name in order:
        used = [use.name for use in found[name].uses if use.name in found]
        sizes[name] = 1 + sum(sizes[inner] for inner in used)
        depths[name] = 1 + max((depths[inner] for inner in used), default=0)
        if sizes[name] > LARGEST or depths[name] > 100:
            message = f"{name!r} is too large: steps built on each other unfold to {sizes[name]} parts"
            faults.add_at_key(message, found[name].node)
            faults.check()


def _result(
    root: Node, found: Mapping[str, Definition], extra: tuple[Use, ...], meant: set[str], faults: Faults
) -> str:
    """The step no other uses. What else is unused is noted, unless a faulty step may have meant it."""
    used = {use.name for definition in found.values() for use in definition.uses}
    named = {use.name for use in extra}
    results = [name for name, each in found.items() if each.section == "steps" and name not in used]
    results = [name for name in results if name not in named] or results
    if not results and "steps" in root.mapping:
        hint = "for example: steps: {result: {combine: 0.5*a + 0.5*b}}"
        faults.add_at_key("there is no step", root.mapping["steps"], hint)
    if any(definition.opaque for definition in found.values()):
        return results[-1] if results else ""
    for name, definition in found.items():
        if definition.section == "models" and name not in used | named | meant:
            faults.add_at_key(f"model {name!r} is not used", definition.node, "use it in a step, or take it out")
    for name in set(results[:-1]) - meant:
        message = f"step {name!r} is used by no other step, and neither is {results[-1]!r}: there is one result"
        faults.add_at_key(message, found[name].node)
    return results[-1] if results else ""
