"""An output proved again from its own receipt: its files, its inputs, and what was computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from surgeon.engine.events import Listener
from surgeon.engine.reading import Files
from surgeon.engine.receipt import made_with
from surgeon.errors import VerificationError
from surgeon.measuring.files_check import check_files, check_hashes
from surgeon.measuring.inputs_check import Inputs, check_inputs, needed, plan_again
from surgeon.measuring.pool import Ticker
from surgeon.measuring.receipt_file import ReceiptFacts, read_receipt
from surgeon.measuring.recompute import Bench, Recomputed, recompute
from surgeon.measuring.verdict import Finding, Verdict, mismatch
from surgeon.planning.plan import Plan
from surgeon.store.checkpoint import Checkpoint

CLAIM = "what its receipt says"


def reprove(folder: Path, *, full: bool, overrides: Mapping[str, str], listener: Listener | None) -> Verdict:
    """Prove what a folder's receipt claims, from the files."""
    try:
        receipt = read_receipt(folder)
    except VerificationError as error:
        return Verdict(str(folder), CLAIM, "", (mismatch("surgeon.json", error.message),))
    findings, checkpoint = check_files(folder, receipt)
    if checkpoint is None:
        return Verdict(str(folder), CLAIM, "", tuple(findings))
    missing, plan = plan_again(folder, receipt, overrides)
    findings += missing
    files = Files()
    try:
        ticker = Ticker("verify", _bytes(checkpoint, plan), listener)
        wrong, digests = check_hashes(checkpoint, receipt, files, ticker)
        findings += wrong
        if plan is None:
            proof = f"holds {len(digests)} tensors with the hashes in its receipt; what they were made from is not here"
            return Verdict(str(folder), CLAIM, proof, tuple(findings), {"tensors": len(digests)})
        changed, inputs = check_inputs(plan, receipt, files, ticker)
        findings += [*changed, *_copies(plan, inputs, receipt, digests)]
        done = _computed(plan, inputs, checkpoint, receipt, files, ticker, full)
    finally:
        files.close()
    findings += done.findings
    return Verdict(
        str(folder), CLAIM, _proof(plan, inputs, receipt, done), tuple(findings), _checked(plan, inputs, done)
    )


def _copies(plan: Plan, inputs: Inputs, receipt: ReceiptFacts, digests: Mapping[str, str]) -> list[Finding]:
    """An untouched tensor has its source's bytes; the source's hash is the receipt's where the source is the same."""
    wrong = []
    for target in plan.targets:
        if target.action == "copy" and target.name in digests and inputs.all_same(needed(plan, target)):
            name = inputs.names[needed(plan, target)[0]]
            if digests[target.name] != receipt.tensors[target.name].inputs.get(name):
                wrong.append(mismatch(target.name, f"is not a byte copy of {name}"))
    return wrong


def _computed(
    plan: Plan, inputs: Inputs, checkpoint: Checkpoint, receipt: ReceiptFacts, files: Files, tick: Ticker, full: bool
) -> Recomputed:
    targets = [
        (target, checkpoint.tensors[target.name])
        for target in plan.targets
        if target.action == "compute"
        and inputs.all_same(needed(plan, target))
        and target.name in checkpoint.tensors
        and checkpoint.tensors[target.name].spec == target.spec
    ]
    if not targets:
        return Recomputed((), 0, sum(t.spec.count for t in plan.targets if t.action == "compute"))
    return recompute(Bench.of(plan, files, tick), targets, full=full, exactly=_same_arithmetic(plan, receipt))


def _same_arithmetic(plan: Plan, receipt: ReceiptFacts) -> bool:
    """Whether the same bytes are promised here: tier A on one architecture, tier B in one environment."""
    now = made_with(plan)
    keys = ("machine", "device") if plan.tier == "A" else ("machine", "device", "torch", "cpu_capability", "gpu")
    return all(now.get(key) == receipt.made_with.get(key) for key in keys)


def _bytes(checkpoint: Checkpoint, plan: Plan | None) -> int:
    size = sum(stored.spec.nbytes for stored in checkpoint.tensors.values())
    if plan is None:
        return size
    return size + sum(stored.spec.nbytes for target in plan.targets for stored in needed(plan, target))


def _proof(plan: Plan, inputs: Inputs, receipt: ReceiptFacts, done: Recomputed) -> str:
    copied = sum(t.action == "copy" and inputs.all_same(needed(plan, t)) for t in plan.targets)
    computed = sum(target.action == "compute" for target in plan.targets)
    how = "bit for bit" if _same_arithmetic(plan, receipt) else "within one rounding (made in another environment)"
    again = (
        f"every entry of the {computed} computed"
        if done.share == 1
        else f"{done.share:.0%} of the entries of the {computed} computed"
    )
    recomputed = f"; {again} tensors recomputed from the inputs {how}" if computed else ""
    return (
        f"holds {len(plan.targets)} tensors as its receipt says, {copied} of them byte copies of the inputs{recomputed}"
    )


def _checked(plan: Plan, inputs: Inputs, done: Recomputed) -> dict[str, object]:
    return {
        "tensors": len(plan.targets),
        "copied": sum(target.action == "copy" for target in plan.targets),
        "computed": sum(target.action == "compute" for target in plan.targets),
        "recomputed_share": done.share,
        "inputs": len(inputs.names),
        "inputs_unchanged": len(inputs.same),
    }
