"""A plan in words and as data."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from surgeon.planning.claims import claims
from surgeon.planning.measured import Measuring
from surgeon.planning.resolve import Resolver
from surgeon.space.expr import Edit, Fit, Model, Reshape, walk
from surgeon.space.registry import reshape_named
from surgeon.store.checkpoint import Checkpoint
from surgeon.tensors import human_bytes

if TYPE_CHECKING:
    from surgeon.artifacts.per_tensor import PerTensor
    from surgeon.planning.plan import Plan
    from surgeon.planning.step import Target

_PROMISE = (
    "  promise: proven of the bytes written; R the directions, gain that of the output norm a tensor writes through"
)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def explain(plan: Plan) -> str:
    """Legend, inputs, stages, edits, what changes grouped by pattern, what is copied in one line, totals."""
    lines = ["  ~ computed   = copied byte for byte   - dropped"]
    lines += [_PROMISE] * any(target.promise for target in plan.targets) + [""]
    lines += ["inputs:"] + [f"  {line}" for line in _inputs(plan)] + [""]
    lines += _section("first measured:", [_fit_words(plan, fit) for fit in plan.fits])
    lines += _section("edits:", [f"{claim.label}: {claim.words()}" for claim in claims(plan)])
    lines += _section("reshapes:", _reshapes(plan))
    lines += [f"  ~ {line}" for line in _groups([t for t in plan.targets if t.action == "compute"])]
    copied = [target for target in plan.targets if target.action == "copy"]
    if copied:
        lines.append(f"  = {len(copied)} tensors, {human_bytes(sum(t.spec.nbytes for t in copied))}: {_copied(copied)}")
    lines += [f"  - {name}" for name in plan.dropped]
    lines += ["", f"config and tokenizer: from {plan.files_from.ref}", *_config(plan)]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return "\n".join([*lines, "", _totals(plan)])


def as_dict(plan: Plan) -> dict[str, Any]:
    """Totals and one entry a tensor."""
    return {
        "tensors": [_tensor(target) for target in plan.targets],
        "dropped": list(plan.dropped), "files_from": plan.files_from.ref, "warnings": list(plan.warnings),
        "config": dict(plan.config), "config_left_out": list(plan.left_out), "changed_files": _files(plan),
        "edits": [claim.to_dict() for claim in claims(plan)],
        "reshapes": [{"reshape": one.reshape, "of": _parts(one)} for one in _reshaped(plan)],
        "fits": [_fit_data(plan, fit) for fit in plan.fits],
        "shards": [file.name for file in plan.layout.files], "workers": plan.workers, "tier": plan.tier,
        "bytes_read": bytes_read(plan), "bytes_written": bytes_written(plan), "peak_memory": plan.peak,
        "stages": stages(plan),
    }  # fmt: skip


def bytes_read(plan: Plan) -> int:
    """Bytes read from disk, each look counted."""
    return sum(target.reads for target in plan.targets)


def bytes_written(plan: Plan) -> int:
    """Bytes of all weight files."""
    return sum(file.size for file in plan.layout.files)


def stages(plan: Plan) -> int:
    """How often the recipe is cut: the output, and each step that something is measured on."""
    return 1 + len({fit.model for fit in plan.fits if not isinstance(fit.model, Model)})


def _fit_data(plan: Plan, fit: Fit | Measuring) -> dict[str, Any]:
    common = {"name": fit.name, "model": str(fit.model), "temporary_disk": temporary_disk(plan, fit)}
    if isinstance(fit, Measuring):
        return common | {"fit": fit.kind, "prompts": fit.prompts}
    return common | {"fitter": fit.fitter, "at": fit.at, "positive": fit.positive, "negative": fit.negative}


def temporary_disk(plan: Plan, fit: Fit | Measuring) -> int:
    """Bytes of the model in fp32 that a fit on the result of a step is measured on; an input is read as it is."""
    if isinstance(fit.model, Model):
        return 0
    table = Resolver(plan.sources)(fit.model).table
    return sum(spec.cast("F32").nbytes if spec.is_float else spec.nbytes for spec in table.values())


def _section(title: str, lines: list[str]) -> list[str]:
    return [title, *(f"  {line}" for line in lines), ""] if lines else []


def _inputs(plan: Plan) -> list[str]:
    found = []
    for model, source in plan.sources.items():
        kind = "model" if isinstance(source, Checkpoint) else "adapter"
        where = f"{source.ref}@{source.revision[:12]}" if source.revision else source.ref
        found.append(f"{model.name or '·'}: {kind} {where}")
    return found + [f"{one.ref}: {one.kind}, {_told(one)}" for one in plan.artifacts]


def _told(artifact: PerTensor) -> str:
    """What an artifact says of its data."""
    about = artifact.about
    return f"{about.get('tokens', '?')} tokens of {about.get('prompts', 'unknown prompts')}"


def _fit_words(plan: Plan, fit: Fit | Measuring) -> str:
    disk = temporary_disk(plan, fit)
    if isinstance(fit, Measuring):
        on = f"{fit.name}: {fit.kind} over {fit.prompts or 'the neutral text that comes with surgeon'}, on {fit.model}"
        return on + (f" (in memory, in fp32: {human_bytes(disk)})" if disk else " (an input)")
    on = f"{fit.name or 'a direction'}: {fit.fitter} at {fit.at}, {fit.positive} against {fit.negative}, on {fit.model}"
    return f"{on} (written in fp32 first: {human_bytes(disk)} of temporary disk)" if disk else f"{on} (an input)"


def _reshaped(plan: Plan) -> list[Reshape]:
    return [node for node in walk(plan.recipe.expr) if isinstance(node, Reshape)]


def _parts(reshape: Reshape) -> str:
    return ", ".join(map(str, reshape.parts))


def _reshapes(plan: Plan) -> list[str]:
    users = {node.of: f", in front of {node}" for node in walk(plan.recipe.expr) if isinstance(node, Edit)}
    does = {one: inspect.getdoc(reshape_named(one.reshape)) or "" for one in _reshaped(plan)}
    return [f"{one.reshape} of {_parts(one)}{users.get(one, '')}: {text.splitlines()[0]}" for one, text in does.items()]


def _config(plan: Plan) -> list[str]:
    """The keys of config.json that change, and the other files that do."""
    before = plan.files_from.config
    return [
        *_files(plan),
        *(
            f"config.json: {key}: {json.dumps(before[key]) if key in before else 'not set'} → {json.dumps(value)}"
            for key, value in plan.config.items()
            if key not in before or before[key] != value
        ),
        *(f"config.json: {key}: left out" for key in plan.left_out),
    ]


def _files(plan: Plan) -> list[str]:
    """What becomes of files that the result does not have as they lie."""
    said = {bytes: "edited", type(None): "left out"}
    return [f"{name}: {said.get(type(content), f'from {content}')}" for name, content in sorted(plan.files.items())]


def _tensor(target: Target) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": target.name, "dtype": target.spec.dtype, "shape": list(target.spec.shape), "action": target.action,
        "reason": target.reason, "inputs": "resident" if target.resident else "streamed", "reads": target.reads,
    }  # fmt: skip
    if promise := target.promise:
        points = [point for _, point in promise.directions]
        entry["promise"] = {"zero": "QᵀW", "edit": promise.edit, "points": points, "gains": list(promise.gains)}
    return entry


def _groups(targets: list[Target]) -> list[str]:
    groups: Counter[tuple[str, str, str, str]] = Counter()
    for target in targets:
        held = ("inputs held" if target.resident else "streamed") + _promised(target)
        groups[_NUMBER.sub("*", target.name), str(target.spec), target.reason, held] += 1
    width = max((len(name) for name, *_ in groups), default=0)
    return [f"{name:{width}}  {n:4} × {spec}  {reason} ({held})" for (name, spec, reason, held), n in groups.items()]


def _promised(target: Target) -> str:
    if target.promise is None:
        return ""
    return "; promise: QᵀW = 0, Q = gain ⊙ R" if target.promise.gains else "; promise: RᵀW = 0"


def _copied(targets: list[Target]) -> str:
    reasons = Counter(target.reason for target in targets)
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _totals(plan: Plan) -> str:
    changed = sum(target.action == "compute" for target in plan.targets)
    count = stages(plan)
    return (
        f"Plan: {changed} tensors computed, {len(plan.targets) - changed} copied, {len(plan.dropped)} dropped; "
        f"{human_bytes(bytes_read(plan))} read, {human_bytes(bytes_written(plan))} written in {len(plan.layout.files)} "
        f"file(s); {count} stage{'s' * (count > 1)}, {plan.workers} worker(s), peak memory {human_bytes(plan.peak)}; "
        f"tier {plan.tier}."
    )
