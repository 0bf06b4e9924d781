"""A plan in words and as data."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from surgeon.store.checkpoint import Checkpoint
from surgeon.tensors import human_bytes

if TYPE_CHECKING:
    from surgeon.planning.plan import Plan
    from surgeon.planning.step import Target

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def explain(plan: Plan) -> str:
    """Legend, inputs, what changes grouped by pattern, what is copied in one line, totals in one sentence."""
    lines = ["  ~ computed   = copied byte for byte   - dropped", ""]
    lines += ["inputs:"] + [f"  {line}" for line in _inputs(plan)] + [""]
    lines += [f"  ~ {line}" for line in _groups([t for t in plan.targets if t.action == "compute"])]
    copied = [target for target in plan.targets if target.action == "copy"]
    if copied:
        lines.append(f"  = {len(copied)} tensors, {human_bytes(sum(t.spec.nbytes for t in copied))}: {_copied(copied)}")
    lines += [f"  - {name}" for name in plan.dropped]
    lines += ["", f"config and tokenizer: from {plan.files_from.ref}"]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return "\n".join([*lines, "", _totals(plan)])


def as_dict(plan: Plan) -> dict[str, Any]:
    """Totals and one entry a tensor."""
    return {
        "tensors": [
            {
                "name": t.name, "dtype": t.spec.dtype, "shape": list(t.spec.shape), "action": t.action,
                "reason": t.reason, "inputs": "resident" if t.resident else "streamed", "reads": t.reads,
            }
            for t in plan.targets
        ],
        "dropped": list(plan.dropped), "files_from": plan.files_from.ref, "warnings": list(plan.warnings),
        "shards": [file.name for file in plan.layout.files], "workers": plan.workers, "tier": plan.tier,
        "bytes_read": bytes_read(plan), "bytes_written": bytes_written(plan), "peak_memory": plan.peak,
        "stages": 1,
    }  # fmt: skip


def bytes_read(plan: Plan) -> int:
    """Bytes read from disk, each look counted."""
    return sum(target.reads for target in plan.targets)


def bytes_written(plan: Plan) -> int:
    """Bytes of all weight files."""
    return sum(file.size for file in plan.layout.files)


def _inputs(plan: Plan) -> list[str]:
    found = []
    for model, source in plan.sources.items():
        kind = "model" if isinstance(source, Checkpoint) else "adapter"
        where = f"{source.ref}@{source.revision[:12]}" if source.revision else source.ref
        found.append(f"{model.name or '·'}: {kind} {where}")
    return found


def _groups(targets: list[Target]) -> list[str]:
    groups: Counter[tuple[str, str, str, str]] = Counter()
    for target in targets:
        held = "inputs held" if target.resident else "streamed"
        groups[_NUMBER.sub("*", target.name), str(target.spec), target.reason, held] += 1
    width = max((len(name) for name, *_ in groups), default=0)
    return [f"{name:{width}}  {n:4} × {spec}  {reason} ({held})" for (name, spec, reason, held), n in groups.items()]


def _copied(targets: list[Target]) -> str:
    reasons = Counter(target.reason for target in targets)
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _totals(plan: Plan) -> str:
    changed = sum(target.action == "compute" for target in plan.targets)
    return (
        f"Plan: {changed} tensors computed, {len(plan.targets) - changed} copied, {len(plan.dropped)} dropped; "
        f"{human_bytes(bytes_read(plan))} read, {human_bytes(bytes_written(plan))} written in {len(plan.layout.files)} "
        f"file(s); 1 stage, {plan.workers} worker(s), peak memory {human_bytes(plan.peak)}; tier {plan.tier}."
    )
