"""Every pattern of a recipe must fit at least one tensor."""

from __future__ import annotations

from collections.abc import Iterator

from surgeon.errors import Fault, RecipeError
from surgeon.planning.resolve import Node, Resolver
from surgeon.space.expr import Combination, DataFit, Edit, Expr, Merge, walk
from surgeon.space.schedule import patterns
from surgeon.space.select import matches


def check_patterns(expr: Expr, root: Node, resolver: Resolver) -> tuple[str, ...]:
    """RecipeError listing every targets pattern that fits no tensor of the step it stands in.

    In mergekit's semantics a filter may fit nothing; what is returned are warnings of those.
    """
    faults, warnings, tables = [], [], {known: node.table for (known, _), node in resolver.done.items()}
    for node, pattern in dict.fromkeys(_patterns(expr)):
        table, origin = tables.get(node, root.table), node.origin
        if any(matches(pattern, name) for name in table):
            continue
        if isinstance(node, Merge) and node.semantics == "mergekit":
            warnings.append(f"the filter {pattern!r} fits no tensor: it has no effect, as in mergekit")
        else:
            hint = f"tensors are called {', '.join(list(table)[:3])}, …; `surgeon show` lists them"
            faults.append(Fault(f"the pattern {pattern!r} fits no tensor", origin, hint))
    if faults:
        raise RecipeError(faults)
    return tuple(dict.fromkeys(warnings))


def _patterns(expr: Expr) -> Iterator[tuple[Expr, str]]:
    for node in walk(expr):
        if isinstance(node, Combination):
            schedules = [schedule for _, coefficient in node.terms for schedule, _ in coefficient.scheduled]
        elif isinstance(node, Merge):
            levels = (node.settings, *(member.settings for member in node.members))
            schedules = [value for own in levels for _, value in own if not isinstance(value, DataFit)]
        elif isinstance(node, Edit):
            schedules = [value for _, value in node.settings]
        else:
            continue
        yield from ((node, pattern) for schedule in schedules for pattern in patterns(schedule))
