"""Rounds of statistics: what must be known of whole tensors, or of the whole model, before blocks are computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from surgeon.planning.evaluation import Evaluator, Known, measured, pieces
from surgeon.planning.spanning import begin, spanning
from surgeon.planning.step import Key, Step, Target
from surgeon.space.kernels import kernel_named
from surgeon.space.statistics import Statistic


def measure_tensor(evaluator: Evaluator, key: Key, block: int, tick: Callable[[int], None]) -> None:
    """Run the statistics below one value that look at one tensor each, operands first, into the evaluator's `known`."""
    for step in measured(evaluator.steps, key):
        for name, statistic in kernel_named(step.kernel).statistics.items():
            if statistic.over(step.values) == "tensor":
                known = begin(step, statistic, step.spec.count)
                for _ in range(statistic.rounds if statistic.active(step.values) else 0):
                    partials: dict[Any, Any] = {}
                    observe(evaluator, step, statistic, known, partials, block, tick)
                    known = statistic.conclude(known, partials)
                evaluator.known[step.key, name] = known


def observe(
    evaluator: Evaluator, step: Step, statistic: Statistic, known: Any, partials: dict[Any, Any], block: int,
    tick: Callable[[int], None],
) -> None:  # fmt: skip
    """One round over one tensor."""
    for start, stop in pieces(step, block):
        place = step.number, start
        wanted = statistic.wanted(known, place, stop - start)
        if wanted:
            whole = kernel_named(step.kernel).blocks != "elements"
            seen = evaluator.observe(step, statistic, start, stop if whole else start + wanted)
            statistic.collect(known, partials, place, statistic.observe(known, seen, place))
        tick(wanted)


def measure_model(
    steps: Mapping[Key, Step], targets: Sequence[Target], evaluator_for: Callable[[Target, Known], Evaluator],
    block: int, tick: Callable[[int], None],
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
                for need in step.inputs:
                    measure_tensor(evaluator, need.key, block, tick)
                observe(evaluator, step, statistic, known, partials, block, tick)
            known = statistic.conclude(known, partials)
        results |= {(step.key, name): known for _, step, _ in members}
    return results
