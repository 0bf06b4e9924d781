"""What a recipe defines and who uses what: unknown and unused names, circles, the order to build in, the result."""

from __future__ import annotations

import difflib
import graphlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from surgeon.errors import nearest
from surgeon.recipe.directions import DIRECTION
from surgeon.recipe.document import Faults, Node
from surgeon.recipe.entries import Kind, Use
from surgeon.recipe.steps import MODEL, STEP_KINDS

LARGEST, DEEPEST = 100_000, 100
"""Bounds on an expression when every shared step is written out: its parts, and steps on steps."""

_UNUSED = {
    "models": "use it in a step, or take it out",
    "directions": "name it in the directions of an edit, or take it out",
}


@dataclass(frozen=True)
class Definition:
    """A model, direction or step, and the names it uses; an `opaque` one has a fault that hides what it uses."""

    name: str
    section: str
    node: Node
    kind: Kind | None
    uses: tuple[Use, ...] = ()
    opaque: bool = False

    @property
    def word(self) -> str:
        """What it is, in a user's words."""
        return self.section.removesuffix("s")


@dataclass(frozen=True)
class Graph:
    """All definitions, in an order in which each comes after what it uses, and the result's name."""

    definitions: Mapping[str, Definition]
    order: tuple[str, ...]
    result: str


def read_graph(root: Node, faults: Faults) -> Graph:
    """The graph of a recipe, with its faults noted; RecipeError where there is no order to build in."""
    found: dict[str, Definition] = {}
    for definition in _definitions(root):
        if definition.name in found:
            word = found[definition.name].word
            faults.add(f"{definition.name!r} is the name of a {word} already", definition.node.start)
        found[definition.name] = definition
    output = root.get("output")
    files_from = output.get("files_from") if output else None
    named = (Use(files_from.text, files_from.at),) if files_from and files_from.text else ()
    meant = _unknown(root, found, named, faults)
    order = _order(found, faults)
    return Graph(found, order, _result(root, found, {use.name for use in named}, meant, faults))


def _definitions(root: Node) -> Iterator[Definition]:
    entries: list[tuple[str, str, Node, Kind | None]] = []
    entries += [("models", name, node, MODEL) for name, node in root.named("models")]
    entries += [("directions", name, node, DIRECTION) for name, node in root.named("directions")]
    for name, node in root.named("steps"):
        kind = next((STEP_KINDS[word] for word in STEP_KINDS if word in node.mapping), None)
        entries.append(("steps", name, node, kind))
    for section, name, node, kind in entries:
        uses = kind.uses(node) if kind else None
        yield Definition(name, section, node, kind, uses or (), opaque=uses is None)


def _unknown(root: Node, found: Mapping[str, Definition], named: tuple[Use, ...], faults: Faults) -> set[str]:
    """Note names that nothing has, or something of another kind; gives those that were probably meant."""
    meant: set[str] = set()
    directions = dict(root.named("directions")).keys()
    points = dict(root.named("models")).keys() | dict(root.named("steps")).keys()
    using = [(name, {*dict(each.node.named("schedules"))}, each.uses) for name, each in found.items()]
    for name, schedules, uses in [*using, ("", set[str](), named)]:
        for use in uses:
            known = directions if use.direction else points
            if use.name in found and use.name not in known:
                wanted = "a direction" if use.direction else "a model or step"
                hint = "" if use.direction else f"an edit takes it: directions: [{use.name}]"
                faults.add(f"{use.name!r} is a {found[use.name].word}, not {wanted}", use.origin, hint)
            elif use.name not in found:
                near = known - {name} | schedules
                faults.add(f"nothing is called {use.name!r}", use.origin, nearest(use.name, near))
                meant.update(difflib.get_close_matches(use.name, near, n=1))
    return meant


def _order(found: Mapping[str, Definition], faults: Faults) -> tuple[str, ...]:
    graph = {name: [use.name for use in each.uses if use.name in found] for name, each in found.items()}
    try:
        order = tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        circle = error.args[1]
        faults.add(f"{' uses '.join(reversed(circle))}: a circle", found[circle[0]].node.start)
        faults.check()
        raise
    sizes: dict[str, int] = {}
    depths: dict[str, int] = {}
    for name in order:
        sizes[name] = 1 + sum(sizes[inner] for inner in graph[name])
        depths[name] = 1 + max((depths[inner] for inner in graph[name]), default=0)
        if sizes[name] > LARGEST or depths[name] > DEEPEST:
            message = f"{name!r} is too large: steps built on each other unfold to {sizes[name]} parts"
            faults.add(message, found[name].node.start)
            faults.check()
    return order


def _result(root: Node, found: Mapping[str, Definition], named: set[str], meant: set[str], faults: Faults) -> str:
    """The step no other uses. What else is unused is noted, unless a faulty step may have meant it."""
    used = {use.name for each in found.values() for use in each.uses}
    steps = [name for name, _ in root.named("steps")]
    results = [name for name in steps if name not in used]
    results = [name for name in results if name not in named] or results
    if not results and "steps" in root.mapping:
        hint = "for example: steps: {result: {combine: 0.5*a + 0.5*b}}"
        faults.add("there is no step", root.mapping["steps"].start, hint)
    result = results[-1] if results else ""
    if any(each.opaque for each in found.values()):
        return result
    for name in found.keys() - steps - used - named - meant:
        faults.add(f"{found[name].word} {name!r} is not used", found[name].node.start, _UNUSED[found[name].section])
    for name in set(results[:-1]) - meant:
        message = f"step {name!r} is used by no other step, and neither is {result!r}: there is one result"
        faults.add(message, found[name].node.start)
    return result
