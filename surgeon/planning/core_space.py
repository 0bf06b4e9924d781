"""Merges of adapters alone, lowered to the space that their factors span: see `space.core_kernels`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.planning.step import Input, Key, Step
from surgeon.tensors import TensorSpec

if TYPE_CHECKING:
    from surgeon.planning.graph import Graph
    from surgeon.planning.nodes import Mix


class Factors(NamedTuple):
    """One low-rank update, scale · L R; where `turned`, L and R are stored transposed."""

    left: Key
    right: Key
    scale: float
    turned: bool


def factored(
    steps: Mapping[Key, Step], keys: Sequence[Key | None], base: Key | None
) -> tuple[tuple[Factors, ...], ...] | None:
    """The updates each value adds to the base, where all of them are low-rank ones; None where one is not."""
    members = []
    for key in keys:
        found = _added(steps, key, base)
        if found is None:
            return None
        members.append(found)
    return tuple(members)


def _added(steps: Mapping[Key, Step], key: Key | None, base: Key | None) -> tuple[Factors, ...] | None:
    """The updates of a difference, or of a point that is the base and differences."""
    if key is None or key == base:
        return ()
    step, values = steps[key], steps[key].values
    if step.kernel != "combine" or not values["anchored"]:
        return _updates(steps, key, 1.0)
    if values["points"] or values["mass"] != 1 or step.inputs[0].key != base:
        return None
    return _summed(steps, step.inputs[1:], values["coefficients"], 1.0)


def _updates(steps: Mapping[Key, Step], key: Key, scale: float) -> tuple[Factors, ...] | None:
    step, values = steps[key], steps[key].values
    if step.wide:
        return None  # float64 stays float64, which cores rounded to float32 would not
    if step.kernel == "low_rank":
        a, b = (need.key for need in step.inputs)
        turned = values["transposed"]
        return (Factors(a if turned else b, b if turned else a, scale * values["scale"], turned),)
    if step.kernel != "combine" or values["points"] or values["anchored"]:
        return None
    return _summed(steps, step.inputs, values["coefficients"], scale)


def _summed(
    steps: Mapping[Key, Step], inputs: Sequence[Input], coefficients: Sequence[float], scale: float
) -> tuple[Factors, ...] | None:
    parts = [_updates(steps, need.key, scale * c) for need, c in zip(inputs, coefficients, strict=True)]
    return None if None in parts else tuple(update for part in parts if part is not None for update in part)


def in_core_space(
    node: Mix, tensor: str, graph: Graph, members: tuple[tuple[Factors, ...], ...], settings: Mapping[str, Any]
) -> Key:
    """The base plus the merged change, kept as two factors: the span of the left ones, and the method on the cores."""
    updates = [update for member in members for update in member]
    turned = tuple(update.turned for update in updates)
    rows, columns = node.table[tensor].shape
    rank = min(rows, sum(_rank(graph.steps[update.left], update.turned) for update in updates))
    lefts = tuple(Input(update.left, whole=True) for update in updates)
    span = graph.add(node, tensor, "span:columns", lefts, {"turned": turned}, "span", TensorSpec("F32", (rows, rank)))
    told = {
        "turned": turned,
        "scales": tuple(update.scale for update in updates),
        "members": tuple(number for number, member in enumerate(members) for _ in member),
    }
    factors = (Input(key, whole=True) for update in updates for key in (update.left, update.right))
    core = graph.add(
        node,
        tensor,
        f"core:{node.method.name}",
        (Input(span, whole=True), *factors),
        {**settings, **told},
        "core",
        TensorSpec("F32", (rank, columns)),
    )
    product = (Input(core, whole=True), Input(span, whole=True))
    merged = graph.add(node, tensor, "low_rank", product, {"scale": 1.0, "transposed": False}, "merged")
    base = graph.key(node.base, tensor) if node.base is not None else None
    assert base is not None
    added = {"coefficients": (1.0,), "points": 0, "anchored": True, "mass": 1.0}
    return graph.add(node, tensor, "combine", (Input(base), Input(merged)), added)


def _rank(left: Step, turned: bool) -> int:
    return left.spec.shape[0 if turned else 1]
