"""Peak memory: counted, kept, or refused by name before anything is read."""

from __future__ import annotations

from dataclasses import replace

from surgeon.errors import BudgetError
from surgeon.planning.dryrun import live_bytes
from surgeon.planning.kinds import Kinds
from surgeon.planning.options import USUAL_BUDGET, Options, free_memory, resident_now
from surgeon.planning.spanning import spanning
from surgeon.planning.step import Target
from surgeon.tensors import human_bytes

#: What a worker holds besides a block's values: read and write buffers, the allocator's slack, Python objects.
_WORKER = 16_000_000
_SLACK = 1.25
#: The same where whole tensors are worked on: blocks of many sizes leave gaps in the heap that freed ones are kept in.
_WHOLE_SLACK = 1.5


def fit(kinds: Kinds, targets: tuple[Target, ...], options: Options) -> tuple[tuple[Target, ...], int, int]:
    """Decide for each tensor whether its inputs are held or read again, and how many workers fit.

    Returns the targets, the number of workers and the peak in bytes of anonymous memory. A tensor that does not fit
    with one worker is a BudgetError that names it.
    """
    base = resident_now() + spanning_bytes(kinds, targets)
    budget = options.memory if options.memory is not None else max(USUAL_BUDGET, free_memory() // 2)
    needs = streamed_bytes(kinds, targets, options)
    _refuse(targets, needs, base, budget)
    aim = min(budget, USUAL_BUDGET)
    workers = options.workers
    while workers > 1 and base + _peak(needs, workers) > aim:
        workers -= 1
    room = (aim - base) // workers
    decided, held = [], []
    for target, need in zip(targets, needs, strict=True):
        kind = kinds.of(target.key)
        whole = need + int(kind.input_bytes * _SLACK)
        if target.action == "compute" and kind.looks > 1 and whole <= room:
            decided.append(replace(target, resident=True, reads=kind.input_bytes))
            held.append(whole)
        else:
            decided.append(target)
            held.append(need)
    return tuple(decided), workers, base + _peak(held, workers)


def streamed_bytes(kinds: Kinds, targets: tuple[Target, ...], options: Options) -> list[int]:
    """What one worker holds for each target when its inputs are streamed; each distinct kind is dry-run once."""
    costs: dict[tuple[int, str], int] = {}
    needs = []
    for target in targets:
        if target.action == "copy":
            needs.append(_WORKER)
            continue
        kind = kinds.number(target.key), target.spec.dtype
        if kind not in costs:
            at_once = kinds.of(target.key).read_at_once
            slack = _WHOLE_SLACK if at_once else _SLACK
            costs[kind] = at_once + int(live_bytes(kinds.steps, target, options.block_elements) * slack)
        needs.append(_WORKER + costs[kind])
    return needs


def spanning_bytes(kinds: Kinds, targets: tuple[Target, ...]) -> int:
    """What the statistics that span the model hold at most, one node after another."""
    if not any(target.action == "compute" and kinds.of(target.key).spans for target in targets):
        return 0
    peak = 0
    for members in spanning(kinds.steps, targets).values():
        _, first, statistic = members[0]
        counts = [step.spec.count for _, step, _ in members]
        peak = max(peak, statistic.scratch(len(first.inputs), sum(counts), max(counts), len(counts)))
    return peak


def _peak(needs: list[int], workers: int) -> int:
    return sum(sorted(needs, reverse=True)[:workers])


def _refuse(targets: tuple[Target, ...], needs: list[int], base: int, budget: int) -> None:
    over = [(need, target) for need, target in zip(needs, targets, strict=True) if base + need > budget]
    if over:
        need, target = max(over, key=lambda pair: pair[0])
        raise BudgetError(
            f"{target.name} {target.spec} ({target.reason}) needs {human_bytes(base + need)} of memory, "
            f"{human_bytes(base)} of it for the program itself; {human_bytes(budget)} are allowed",
            hint=f"allow --memory {-(-(base + need) // 10**6) + 10}MB",
        )
