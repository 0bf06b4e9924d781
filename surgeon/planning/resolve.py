"""From an expression to nodes with tables and masses: which points, which differences, from which base.

A node answers from headers alone: its `table` of tensors, and `lower(tensor, graph)`, the key of the step that computes
one of them (None where a difference does not touch the tensor). A new kind of expression registers its own resolver.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from surgeon.anatomy.family import families
from surgeon.anatomy.vocabulary import vocabulary_tensors
from surgeon.errors import MismatchError, Origin, RefusedError, SurgeonError
from surgeon.planning.sources import Sources
from surgeon.space.coefficient import Coefficient
from surgeon.space.expr import ONE, Combination, Edit, Expr, Merge, MergeSettings, Model, Reshape
from surgeon.space.method import MergeMethod
from surgeon.space.registry import merge_method_named
from surgeon.space.sides import Sides
from surgeon.store.adapter import Adapter
from surgeon.store.checkpoint import Checkpoint
from surgeon.tensors import TensorSpec

if TYPE_CHECKING:
    from surgeon.planning.graph import Graph
    from surgeon.planning.step import Key

Table = Mapping[str, TensorSpec]


class Node(Protocol):
    """A resolved expression."""

    @property
    def label(self) -> str:
        """What messages call it."""
        ...

    @property
    def table(self) -> Table:
        """Its tensors: name → dtype and shape."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """Its config.json; empty where its files have none."""
        ...

    @property
    def sides(self) -> Sides:
        """The files beside its weights."""
        ...

    @property
    def mass(self) -> Coefficient:
        """The sum of its coefficients: 1 for a model, 0 for a difference."""
        ...

    def lower(self, tensor: str, graph: Graph) -> Key | None:
        """The key of the step that computes a tensor."""
        ...


@dataclass(frozen=True, eq=False)
class Resolver:
    """Resolves the expressions of one plan against their opened sources; `base` is what differences stand on."""

    sources: Sources
    base: Node | None = None
    done: dict[tuple[Expr, int], Node] = field(default_factory=dict)

    def __call__(self, expr: Expr) -> Node:
        """The node of an expression; equal expressions on one base are one node."""
        resolver = self if self._stands(expr) else self.on(None)
        key = expr, id(resolver.base)
        if key not in self.done:
            try:
                self.done[key] = resolve(expr, resolver)
            except SurgeonError as error:
                error.origin = error.origin or expr.origin
                raise
        return self.done[key]

    def on(self, base: Node | None) -> Resolver:
        """The same resolver with another base for differences."""
        return Resolver(self.sources, base, self.done)

    def _stands(self, expr: Expr) -> bool:
        """Whether what an expression means may depend on the base at hand: adapters without a point among them do."""
        if isinstance(expr, Combination):
            return all(self.is_adapter(term) for term, _ in expr.terms)
        return not isinstance(expr, Merge | Model) or self.is_adapter(expr)

    def is_adapter(self, expr: Expr) -> bool:
        """Whether an expression is an adapter itself."""
        return isinstance(expr, Model) and isinstance(self.sources[expr], Adapter)


@functools.singledispatch
def resolve(expr: Expr, resolver: Resolver) -> Node:
    """The node of an expression; kinds of expressions register themselves here."""
    raise RefusedError(f"{type(expr).__name__} cannot be planned", origin=expr.origin)


@resolve.register
def _model(expr: Model, resolver: Resolver) -> Node:
    from surgeon.planning.nodes import Delta, Point

    source = resolver.sources[expr]
    if isinstance(source, Checkpoint):
        return Point(str(expr), source, source.table, replace(Sides.of(source), label=str(expr)))
    base = resolver.on(None)(expr.base_model) if expr.base_model is not None else resolver.base
    if expr.base_model is not None and base is not None:
        check_mass(base, wanted=(1,))
    if base is None:
        raise MismatchError(
            f"{expr} is an adapter, a difference without a model to stand on", hint=f"write base + 1*{expr}"
        )
    updates = source.on(base.table, base.label)
    return Delta(str(expr), source, base, updates)


@resolve.register
def _combination(expr: Combination, resolver: Resolver) -> Node:
    from surgeon.planning.nodes import Sum

    alone = resolver.on(None)
    anchor = next((alone(term) for term, _ in expr.terms if not resolver.is_adapter(term)), None)
    standing = resolver.on(anchor or resolver.base)
    nodes = [(standing(term) if resolver.is_adapter(term) else alone(term), c) for term, c in expr.terms]
    points = tuple((node, c) for node, c in nodes if node.mass.is_number(1))
    differences = tuple((node, c) for node, c in nodes if not node.mass.is_number(1))
    if not nodes:
        raise MismatchError("everything cancels: the combination is zero", hint="a model needs weights that sum to 1")
    first = points[0][0] if points else nodes[0][0]
    for node, _ in nodes:
        same_tables(first, node)
    mass = sum((c for _, c in points), Coefficient(ONE.constant * 0))
    return Sum(str(expr), first.table, points, differences, mass)


@resolve.register
def _merge(expr: Merge, resolver: Resolver) -> Node:
    from surgeon.planning.measured import opened
    from surgeon.planning.nodes import Mix

    method = merge_method_named(expr.method)
    base = resolver.on(None)(expr.base_model) if expr.base_model is not None else None
    members = tuple((resolver.on(base)(member.of), member.settings) for member in expr.members)
    _check_merge(expr, method, base, members)
    measured = opened(expr, resolver, (base or members[0][0]).table)
    return Mix(str(expr), method, base, members, expr.settings, expr.semantics, measured, expr.origin)


@resolve.register
def _edit(expr: Edit, resolver: Resolver) -> Node:
    from surgeon.planning.editing import edited

    return edited(expr, resolver)


@resolve.register
def _reshape(expr: Reshape, resolver: Resolver) -> Node:
    from surgeon.planning.editing import reshaped

    return reshaped(expr, resolver)


def _check_merge(
    expr: Merge, method: MergeMethod[...], base: Node | None, members: tuple[tuple[Node, MergeSettings], ...]
) -> None:
    if method.needs_base and base is None:
        raise RefusedError(f"{method.name} needs a base_model", hint="name the model the others were made from")
    if base is not None and not method.takes_base:
        raise RefusedError(f"{method.name} has no base_model", hint="list it among the models, with a weight")
    low, high = method.models
    if len(members) < low or (high is not None and len(members) > high):
        wanted = f"{low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
        raise RefusedError(f"{method.name} takes {wanted} model(s) besides the base; {len(members)} given")
    for number, (node, _) in enumerate(members):
        if any(node is other for other, _ in members[:number]):
            raise RefusedError(
                f"{node.label} is there twice", origin=expr.origin, hint="list it once, with the sum of the weights"
            )
        check_mass(node)
        if node.mass.is_number(0) and base is None:
            raise MismatchError(f"{node.label} is a difference, and {method.name} has no base to add it to")
        same_tables(base or members[0][0], node)
    if base is not None:
        check_mass(base, wanted=(1,))


def check_mass(node: Node, wanted: tuple[int, ...] = (1, 0), origin: Origin | None = None) -> None:
    """Refuse a value whose coefficients sum to neither 1 nor (where allowed) 0."""
    if any(node.mass.is_number(value) for value in wanted):
        return
    points = [(point.label, c) for point, c in getattr(node, "points", ())]
    hint = "write base + w*(model - base)"
    if points:
        moved = [f"{c}*({label} - {points[0][0]})" for label, c in points[1:]]
        added = [f"{c}*{difference.label}" for difference, c in getattr(node, "differences", ())]
        hint = f"did you mean {' + '.join([points[0][0], *moved, *added])}?"
    needed = "a model needs 1" + (", a task vector 0" if 0 in wanted else "; a task vector (0) is not a model")
    raise MismatchError(f"the weights of {node.label} sum to {node.mass}; {needed}", origin=origin, hint=hint)


def same_tables(first: Node, second: Node) -> None:
    """Refuse values whose tensor names, shapes or integer dtypes differ, listing all differences.

    A difference must fit as well: what it holds under a name that the others do not have would be left out.
    """
    if first.table is second.table:
        return
    faults = [f"{name}: only in {first.label}" for name in first.table.keys() - second.table.keys()]
    faults += [f"{name}: only in {second.label}" for name in second.table.keys() - first.table.keys()]
    for name in first.table.keys() & second.table.keys():
        one, other = first.table[name], second.table[name]
        if one.shape != other.shape or (one.dtype != other.dtype and not (one.is_float and other.is_float)):
            faults.append(f"{name}: {one} in {first.label}, {other} in {second.label}")
    if faults:
        shown = "\n    ".join(sorted(faults)[:40]) + (f"\n    … {len(faults) - 40} more" if len(faults) > 40 else "")
        raise MismatchError(
            f"{first.label} and {second.label} do not fit together:\n    {shown}", hint=_fitting(first, second)
        )


def _fitting(first: Node, second: Node) -> str:
    """What makes two tables fit: one vocabulary where only its rows differ, a head of its own for a tied model."""
    heads = {family.unembed for family in families().values()}
    if hint := _vocabularies(first, second):
        return hint
    for one, other in ((first, second), (second, first)):
        more = one.table.keys() - other.table.keys()
        if more and more <= heads and not other.table.keys() - one.table.keys():
            return (
                f"{one.label} has a head of its own and {other.label} is tied: give {other.label} one first "
                f"(reshape: untie), or keep the edit's embedding and head together (tied: both)"
            )
    return "models must share names, shapes and integer dtypes to be combined"


def _vocabularies(first: Node, second: Node) -> str:
    """What to do where tensors that have a row a token are all that differs, and only in their rows."""
    shared = first.table.keys() & second.table.keys()
    pairs = {name: (first.table[name].shape, second.table[name].shape) for name in shared}
    differing = {name: shapes for name, shapes in pairs.items() if shapes[0] != shapes[1]}
    rows_only = all(one[1:] == other[1:] for one, other in differing.values())
    if not differing or not rows_only or not differing.keys() <= set(vocabulary_tensors(shared)):
        return ""
    one, other = next(iter(differing.values()))
    return (
        f"{first.label} has rows for {one[0]} tokens and {second.label} for {other[0]}: bring every model to one "
        f"vocabulary first, {second.label} for one by reshape: vocab, of: {second.label}, "
        f"with: [{first.label}, {second.label}] (in mergekit's YAML, tokenizer_source: union)"
    )
