"""The plan behind a receipt, built again, and whether the inputs it names are still what they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from surgeon.engine.devices import available
from surgeon.errors import CheckpointError, RecipeError, RefusedError
from surgeon.measuring.files_check import RESOLVED, against
from surgeon.measuring.receipt_file import ReceiptFacts
from surgeon.measuring.verdict import Finding, mismatch, unknown
from surgeon.planning.options import Options
from surgeon.planning.plan import Plan, build
from surgeon.planning.step import Target, below
from surgeon.recipe import load_recipe
from surgeon.store.header import Stored, read_header
from surgeon.tensors import TensorSpec

_THERE = "bring the inputs back to where the recipe names them, or say where they are: --set models.NAME=PATH"
_OTHER = "take the inputs of that time, or apply the recipe again"


def plan_again(folder: Path, receipt: ReceiptFacts, overrides: Mapping[str, str]) -> tuple[list[Finding], Plan | None]:
    """The plan of OUT's own recipe; None, with the reason, where it cannot be had."""
    device = receipt.made_with.get("device", "cpu")
    options = Options(device if device in available() else "cpu")
    try:
        plan = build(load_recipe(folder / RESOLVED, overrides), options)
    except RecipeError as error:
        if overrides:
            raise
        return [mismatch(RESOLVED, f"is no recipe that could be run: {error.faults[0].message}")], None
    except (CheckpointError, RefusedError) as error:
        lost = "is not there" if isinstance(error, CheckpointError) else "no longer fits the recipe"
        return [unknown("inputs", f"what it was made from {lost} ({error.message})", _THERE)], None
    return [*_against_plan(receipt, plan), *_headers(receipt, plan)], plan


def inputs_of(plan: Plan, receipt: ReceiptFacts) -> dict[str, dict[str, Stored]]:
    """The stored tensors each target is made from, under the names the receipt has for them.

    Sources come in the order of the expression, so the receipt's names are matched by place.
    """
    called = {
        stored: f"{facts.name}/{tensor}"
        for facts, (_, source) in zip(receipt.inputs, plan.inputs, strict=False)
        for tensor, stored in source.stored.items()
    }
    return {
        target.name: {called.get(stored, stored.file.name): stored for stored in _needed(plan, target)}
        for target in plan.targets
    }


def check_inputs(
    receipt: ReceiptFacts, inputs: Mapping[str, Mapping[str, Stored]], digests: Mapping[Stored, str]
) -> tuple[list[Finding], set[Stored]]:
    """What the receipt has of each tensor's inputs against their hashes now; and the inputs that changed."""
    findings: list[Finding] = []
    changed: dict[Stored, str] = {}
    for name in inputs.keys() & receipt.tensors.keys():
        said, needed = receipt.tensors[name].inputs, inputs[name]
        if said.keys() != needed.keys():
            findings.append(mismatch(name, "the receipt lists other inputs than the recipe has"))
        changed |= {stored: label for label, stored in needed.items() if said.get(label) != digests[stored]}
    for label in sorted(changed.values()):
        findings.append(unknown(label, "an input that is not what it was when OUT was made", _OTHER))
    return findings, set(changed)


def _needed(plan: Plan, target: Target) -> Iterator[Stored]:
    if target.action == "copy":
        yield from filter(None, (target.stored,))
    else:
        yield from (step.stored for step in below(plan.steps, target.key) if step.stored is not None)


def _against_plan(receipt: ReceiptFacts, plan: Plan) -> Iterator[Finding]:
    """What the receipt says of the plan must be what its recipe gives."""
    if len(plan.inputs) != len(receipt.inputs):
        yield mismatch("inputs", f"the recipe has {len(plan.inputs)} inputs, the receipt {len(receipt.inputs)}")
    if plan.tier != receipt.tier:
        yield mismatch("tier", f"the recipe's is {plan.tier}, the receipt says {receipt.tier}")
    if list(plan.dropped) != receipt.dropped:
        yield mismatch("dropped", "the receipt lists other dropped tensors than the recipe has")
    given = {
        target.name: (target.action, str(target.spec), plan.layout.tensors[target.name].file) for target in plan.targets
    }
    said = {
        name: (facts.action, str(TensorSpec(facts.dtype, tuple(facts.shape))), facts.file)
        for name, facts in receipt.tensors.items()
    }
    yield from against(given, said, "tensor of the recipe")


def _headers(receipt: ReceiptFacts, plan: Plan) -> Iterator[Finding]:
    for facts, (_, source) in zip(receipt.inputs, plan.inputs, strict=False):
        files = {stored.file for stored in source.stored.values()}
        headers = {file.name: (file.stat().st_size, read_header(file).digest) for file in files}
        if headers != {name: (file.size, file.header) for name, file in facts.files.items()}:
            yield unknown(facts.name, "an input whose weight files are not those the receipt lists", _THERE)
