"""Statistics that span the model: one result for every tensor of a node, so one setting for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.errors import MismatchError
from surgeon.planning.evaluation import measured
from surgeon.planning.step import Key, Step, Target
from surgeon.space.kernels import kernel_named
from surgeon.space.statistics import Statistic

Steps = Mapping[Key, Step]
Spanning = Mapping[tuple[int, str], list[tuple[Target, Step, Statistic]]]


def spanning(steps: Steps, targets: Sequence[Target]) -> Spanning:
    """The statistics that span the model, by node and argument, with each tensor they look at once."""
    found: dict[tuple[int, str], dict[Key, tuple[Target, Step, Statistic]]] = {}
    for target in targets:
        if target.action == "compute":
            for step in measured(steps, target.key):
                for name, statistic in kernel_named(step.kernel).statistics.items():
                    if statistic.over(step.values) == "model":
                        found.setdefault((step.key.node, name), {}).setdefault(step.key, (target, step, statistic))
    return {of: list(members.values()) for of, members in found.items()}


def begin(step: Step, statistic: Statistic, count: int) -> Any:
    """What a statistic of a step knows before its first round, of `count` elements a model."""
    width = kernel_named(step.kernel).width(sum(not need.whole for need in step.inputs), step.values)
    return statistic.begin(width, count, step.values)


def check_spanning(steps: Steps, targets: Sequence[Target]) -> None:
    """MismatchError where settings that a result for the whole model rests on differ from tensor to tensor."""
    for members in spanning(steps, targets).values():
        _, first, statistic = members[0]
        for _, step, _ in members[1:]:
            if begin(step, statistic, first.spec.count) != begin(first, statistic, first.spec.count):
                raise MismatchError(
                    f"{step.kernel.partition(':')[2]} over: model has one threshold for all tensors, but its settings "
                    f"differ between {first.key.tensor} and {step.key.tensor}",
                    hint="give one number for the whole model, or leave `over` out",
                )
