"""The plan behind a receipt, built again, and whether the inputs it names are still what they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from surgeon.engine.devices import available
from surgeon.engine.reading import Files
from surgeon.engine.receipt import stored_tensors
from surgeon.errors import CheckpointError, RecipeError, RefusedError
from surgeon.measuring.files_check import RESOLVED, digests_of
from surgeon.measuring.receipt_file import ReceiptFacts
from surgeon.measuring.verdict import Finding, mismatch, unknown
from surgeon.planning.options import Options
from surgeon.planning.plan import Plan, build
from surgeon.planning.step import Target, below
from surgeon.recipe import load_recipe
from surgeon.store.header import Stored, read_header

_THERE = "bring the inputs back to where the recipe names them, or say where they are: --set models.NAME=PATH"


@dataclass(frozen=True)
class Inputs:
    """The input tensors of a plan: what the receipt calls them, and those whose bytes are still the same."""

    names: Mapping[Stored, str]
    same: frozenset[Stored]

    def all_same(self, needed: tuple[Stored, ...]) -> bool:
        """Whether every one of these is as it was."""
        return self.same.issuperset(needed)


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
    except CheckpointError as error:
        return [unknown("inputs", f"what it was made from is not there ({error.message})", _THERE)], None
    except RefusedError as error:
        return [unknown("inputs", f"what it was made from no longer fits the recipe ({error.message})", _THERE)], None
    return list(_against_receipt(plan, receipt)), plan


def needed(plan: Plan, target: Target) -> tuple[Stored, ...]:
    """The stored tensors a target is made from."""
    if target.action == "copy":
        return (target.stored,) if target.stored is not None else ()
    found = (step.stored for step in below(plan.steps, target.key))
    return tuple(dict.fromkeys(stored for stored in found if stored is not None))


def check_inputs(
    plan: Plan, receipt: ReceiptFacts, files: Files, tick: Callable[[int], None]
) -> tuple[list[Finding], Inputs]:
    """Hash the inputs again and compare with what the receipt has of each tensor's inputs."""
    wanted = tuple(dict.fromkeys(stored for target in plan.targets for stored in needed(plan, target)))
    called = _names(plan, receipt)
    names = {stored: called.get(stored, stored.file.name) for stored in wanted}
    digests = dict(zip(wanted, digests_of(list(wanted), files, tick), strict=True))
    findings: list[Finding] = []
    changed: set[Stored] = set()
    for target in plan.targets:
        facts = receipt.tensors.get(target.name)
        expected = {names[stored]: stored for stored in needed(plan, target)}
        if facts is None:
            continue
        if facts.inputs.keys() != expected.keys():
            findings.append(mismatch(target.name, "the receipt lists other inputs than the recipe has"))
        changed |= {stored for name, stored in expected.items() if facts.inputs.get(name) != digests[stored]}
    hint = "take the inputs of that time, or apply the recipe again"
    findings += [
        unknown(names[one], "an input that is not what it was when OUT was made", hint)
        for one in wanted
        if one in changed
    ]
    return findings, Inputs(names, frozenset(set(wanted) - changed))


def _names(plan: Plan, receipt: ReceiptFacts) -> dict[Stored, str]:
    """Sources come in the order of the expression, so the receipt's names are matched by place."""
    called = [facts.name for facts in receipt.inputs]
    return {
        stored: f"{name}/{tensor}"
        for name, source in zip(called, plan.sources.values(), strict=False)
        for tensor, stored in stored_tensors(source)
    }


def _against_receipt(plan: Plan, receipt: ReceiptFacts) -> Iterator[Finding]:
    """What the receipt says of the plan must be what its recipe gives."""
    if len(plan.sources) != len(receipt.inputs):
        yield mismatch("inputs", f"the recipe has {len(plan.sources)} inputs, the receipt {len(receipt.inputs)}")
    if plan.tier != receipt.tier:
        yield mismatch("tier", f"the recipe's is {plan.tier}, the receipt says {receipt.tier}")
    if list(plan.dropped) != receipt.dropped:
        yield mismatch("dropped", "the receipt lists other dropped tensors than the recipe has")
    targets = {target.name: target for target in plan.targets}
    for name in sorted(targets.keys() ^ receipt.tensors.keys()):
        yield mismatch(name, "the recipe and the receipt do not have the same tensors")
    for name in targets.keys() & receipt.tensors.keys():
        target, facts = targets[name], receipt.tensors[name]
        said = facts.action, facts.dtype, tuple(facts.shape), facts.file
        if said != (target.action, target.spec.dtype, target.spec.shape, plan.layout.tensors[name].file):
            yield mismatch(name, "the receipt says otherwise than the recipe: action, dtype, shape or file")
    for facts, source in zip(receipt.inputs, plan.sources.values(), strict=False):
        files = {stored.file for _, stored in stored_tensors(source)}
        headers = {file.name: (file.stat().st_size, read_header(file).digest) for file in files}
        if headers != {name: (file.size, file.header) for name, file in facts.files.items()}:
            yield unknown(facts.name, "an input whose weight files are not those the receipt lists", _THERE)
