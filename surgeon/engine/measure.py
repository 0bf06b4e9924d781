"""Rounds of statistics: what must be known of whole tensors, or of the whole model, before blocks are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from surgeon.planning.evaluation import Evaluator, Known, measured, ranges
from surgeon.planning.step import Key, Step, Target
from surgeon.space.kernels import kernel_named
from surgeon.space.statistics import Statistic

Steps = Mapping[Key, Step]


def local(steps: Steps, target: Target) -> Iterator[tuple[Step, str, Statistic]]:
    """The statistics below a target that look at one tensor each."""
    for step in measured(steps, target.key):
        for name, statistic in kernel_named(step.kernel).statistics.items():
            if statistic.over(step.values) == "tensor":
                yield step, name, statistic


def measure_tensor(evaluator: Evaluator, target: Target, block: int, tick: Callable[[int], None]) -> None:
    """Run the local statistics of one target, operands first; results go into the evaluator's `known`."""
    for step, name, statistic in local(evaluator.steps, target):
        known = begin(step, statistic, step.spec.count)
        for _ in range(statistic.rounds):
            partials: dict[Any, Any] = {}
            observe(evaluator, step, statistic, known, partials, block, tick)
            known = statistic.conclude(known, partials)
        evaluator.known[step.key, name] = known


def begin(step: Step, statistic: Statistic, count: int) -> Any:
    """What a statistic of a step knows before its first round."""
    width = kernel_named(step.kernel).width(sum(not need.whole for need in step.inputs))
    return statistic.begin(width, count, step.values)


def observe(
    evaluator: Evaluator, step: Step, statistic: Statistic, known: Any, partials: dict[Any, Any], block: int,
    tick: Callable[[int], None],
) -> None:  # fmt: skip
    """One round over one tensor."""
    for start, stop in ranges(step.spec.count, block):
        place = evaluator.number, start
        if statistic.wanted(known, place, stop - start):
            seen = evaluator.observe(step, start, stop)
            statistic.collect(known, partials, place, statistic.observe(known, seen, place))
        tick(stop - start)


def spanning(steps: Steps, targets: Sequence[Target]) -> dict[tuple[int, str], list[tuple[Target, Step, Statistic]]]:
    """The statistics that span the model, by node and argument, with the tensors they look at."""
    found: dict[tuple[int, str], list[tuple[Target, Step, Statistic]]] = {}
    for target in targets:
        if target.action == "compute":
            for step in measured(steps, target.key):
                for name, statistic in kernel_named(step.kernel).statistics.items():
                    if statistic.over(step.values) == "model":
                        found.setdefault((step.key.node, name), []).append((target, step, statistic))
    return found


def measure_model(
    steps: Steps, targets: Sequence[Target], evaluator_for: Callable[[Target, Known], Evaluator], block: int,
    tick: Callable[[int], None],
) -> Known:  # fmt: skip
    """Run the statistics that span the model, one node after another."""
    results: Known = {}
    for (_, name), members in spanning(steps, targets).items():
        _, first, statistic = members[0]
        known = begin(first, statistic, sum(step.spec.count for _, step, _ in members))
        for _ in range(statistic.rounds):
            partials: dict[Any, Any] = {}
            for target, step, _ in members:
                evaluator = evaluator_for(target, dict(results))
                measure_tensor(evaluator, target, block, tick)
                observe(evaluator, step, statistic, known, partials, block, tick)
            known = statistic.conclude(known, partials)
        results |= {(step.key, name): known for _, step, _ in members}
    return results
