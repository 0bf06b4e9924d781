"""Peak memory: counted, kept, or refused by name before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from surgeon.errors import BudgetError
from surgeon.planning.dryrun import Signature, live_bytes, signature
from surgeon.planning.evaluation import rounds
from surgeon.planning.options import USUAL_BUDGET, Options, free_memory, resident_now
from surgeon.planning.step import Key, Step, Target, below
from surgeon.tensors import human_bytes

#: What a worker holds besides a block's values: read and write buffers, the allocator's slack, Python objects.
_WORKER = 16_000_000
_SLACK = 1.25


def fit(
    steps: Mapping[Key, Step], targets: tuple[Target, ...], options: Options
) -> tuple[tuple[Target, ...], int, int]:
    """Decide for each tensor whether its inputs are held or read again, and how many workers fit.

    Returns the targets, the number of workers and the peak in bytes of anonymous memory. A tensor that does not fit
    with one worker is a BudgetError that names it.
    """
    base = resident_now()
    budget = options.memory if options.memory is not None else max(USUAL_BUDGET, free_memory() // 2)
    needs = streamed_bytes(steps, targets, options)
    _refuse(targets, needs, base, budget)
    aim = min(budget, USUAL_BUDGET)
    workers = options.workers
    while workers > 1 and base + _peak(needs, workers) > aim:
        workers -= 1
    room = (aim - base) // workers
    decided, held = [], []
    for target, need in zip(targets, needs, strict=True):
        raw = _input_bytes(steps, target)
        resident = target.action == "compute" and rounds(steps, target.key) > 1 and need + raw <= room
        decided.append(replace(target, resident=resident, reads=raw if resident else target.reads))
        held.append(need + raw if resident else need)
    return tuple(decided), workers, base + _peak(held, workers)


def streamed_bytes(steps: Mapping[Key, Step], targets: tuple[Target, ...], options: Options) -> list[int]:
    """What one worker holds for each target when its inputs are streamed; each distinct kind is dry-run once."""
    signatures: dict[Key, Signature] = {}
    costs: dict[tuple[Signature, str], int] = {}
    needs = []
    for target in targets:
        if target.action == "copy":
            needs.append(_WORKER)
            continue
        kind = signature(steps, target.key, signatures), target.spec.dtype
        if kind not in costs:
            costs[kind] = int(live_bytes(steps, target, options.block_elements) * _SLACK)
        needs.append(_WORKER + costs[kind])
    return needs


def _input_bytes(steps: Mapping[Key, Step], target: Target) -> int:
    return sum(step.stored.spec.nbytes for step in below(steps, target.key) if step.stored is not None)


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
