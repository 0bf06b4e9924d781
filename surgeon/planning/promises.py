"""What holds of a written tensor: its edit was the last thing done to it, and nothing of the subspace is left in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from surgeon.artifacts.direction import Direction
from surgeon.planning.edits import Edited
from surgeon.planning.step import Key, Step, Target
from surgeon.space.registry import edit_named

if TYPE_CHECKING:
    from surgeon.planning.graph import Graph
    from surgeon.planning.resolve import Node

Steps = Mapping[Key, Step]


@dataclass(frozen=True)
class Promise:
    """Qᵀ of this tensor is zero along `axis`, where Q spans diag(γ)·R: R of `directions`, γ `gain` + tensors."""

    step: Key
    frame: Key
    before: Key
    axis: int
    edit: str
    directions: tuple[tuple[Direction, str], ...]
    gains: tuple[str, ...]
    gain: float


def promise_of(steps: Steps, key: Key) -> Promise | None:
    """The promise of a value whose last step is an edit that removes."""
    step = steps[key]
    if not _removes(step):
        return None
    frame = steps[step.inputs[1].key]
    gains = tuple(need.key.tensor for need in frame.inputs)
    return Promise(
        key,
        frame.key,
        step.inputs[0].key,
        -1 if step.kernel.endswith("@last") else -2,
        _edit_name(step),
        frame.values["directions"],
        gains,
        frame.values["gain"],
    )


def standing(promise: Promise, tensor: str, graph: Graph, root: Node) -> Promise | None:
    """The promise of a tensor of the result, its gains called as they are there; None where the result has others."""
    needed = [need.key for need in graph.steps[promise.frame].inputs]
    if not needed:
        return promise
    gains = [_called(key, tensor, graph, root) for key in needed]
    return None if None in gains else replace(promise, gains=tuple(gain for gain in gains if gain))


def _called(key: Key, tensor: str, graph: Graph, root: Node) -> str | None:
    """What a value is called in the tensor's layer of the result, where layers may have been renumbered."""
    layer = graph.position(root, tensor)
    names = (name for name in graph.names(root).get(key, ()) if graph.position(root, name) == layer)
    return next(names, None)


def changed_gains(graph: Graph, root: Node, targets: Iterable[Target]) -> tuple[str, ...]:
    """A sentence where the gain of an output norm changes after an edit that removed something behind it."""
    found = [(target.name, promise_of(graph.steps, target.key)) for target in targets if target.promise is None]
    count = sum(promise is not None and not standing(promise, name, graph, root) for name, promise in found)
    if not count:
        return ()
    return (
        f"the output norms behind {count} edited tensors change after the edit: the direction may come back; edit last",
    )


def undone(steps: Steps, keys: Iterable[Key]) -> tuple[str, ...]:
    """A sentence for every edit that removes something, and is followed by a step that may bring it back."""
    counted: Counter[tuple[str, str]] = Counter()
    for key in keys:
        last = steps[key]
        for step in steps_below(steps, key):
            if step.key != key and _removes(step) and step.key.tensor == key.tensor:
                counted[_edit_name(step), _edit_name(last)] += 1
    return tuple(
        f"{count} tensors are changed by {after} after {edit} has removed a direction from them: it may come back"
        + ("; name both directions in one step" if after == edit else "")
        for (edit, after), count in counted.items()
    )


def steps_below(steps: Steps, key: Key) -> tuple[Step, ...]:
    """The steps a value rests on."""
    from surgeon.planning.step import below

    return below(steps, key)


def is_everywhere(node: Edited) -> bool:
    """Whether an edit reaches every writer with the same rows: then the stream holds nothing of them at any point."""
    same = all(not along.at.startswith("own") for along in node.along)
    return same and not node.anatomy.unknown and node.chosen.keys() == node.anatomy.writers().keys()


def _removes(step: Step) -> bool:
    if not step.kernel.startswith("edit:") or len(step.inputs) < 2:
        return False
    method = edit_named(_edit_name(step))
    return method.holds(method.removes, step.values)


def _edit_name(step: Step) -> str:
    return step.kernel.partition(":")[2].removesuffix("@last") or step.kernel
