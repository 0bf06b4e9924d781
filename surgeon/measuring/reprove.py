"""An output proved again from its own receipt: its files, its inputs, and what was computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from surgeon.engine.events import Listener
from surgeon.engine.reading import Files
from surgeon.engine.receipt import made_with
from surgeon.errors import VerificationError
from surgeon.measuring.chain import follow
from surgeon.measuring.files_check import check_files, check_tensors
from surgeon.measuring.inputs_check import check_inputs, inputs_of, plan_again
from surgeon.measuring.reading import Ticker, digests
from surgeon.measuring.receipt_file import ReceiptFacts, read_receipt
from surgeon.measuring.recompute import Bench, recompute
from surgeon.measuring.verdict import Finding, Verdict, mismatch
from surgeon.measuring.zeros import check_zeros, words
from surgeon.planning.plan import Plan
from surgeon.planning.step import Target
from surgeon.store.header import Stored

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
    inputs = {} if plan is None else inputs_of(plan, receipt)
    stored = [*checkpoint.tensors.values(), *(one for needed in inputs.values() for one in needed.values())]
    tick = Ticker("verify", sum(one.spec.nbytes for one in stored), listener)
    with closing(Files()) as files:
        hashes = digests(files, tuple(dict.fromkeys(stored)), tick)
        wrong, zeros = check_zeros(folder, receipt, checkpoint, files)
        findings += [*missing, *check_tensors(checkpoint, receipt, hashes), *wrong]
        if plan is None:
            count = len(checkpoint.tensors)
            proof = f"holds {count} tensors with the hashes in its receipt{words(zeros)}"
            proof += "; what they were made from is not here"
            return Verdict(str(folder), CLAIM, proof, tuple(findings), {"tensors": count})
        other, changed = check_inputs(receipt, inputs, hashes)
        chain, followed = follow(receipt, [source for _, source in plan.inputs])
        findings += [*other, *chain]
        provable = {name: needed for name, needed in inputs.items() if not changed.intersection(needed.values())}
        pairs = [
            (target, checkpoint.tensors[target.name])
            for target in plan.targets
            if target.name in provable and target.name in checkpoint.tensors
        ]
        findings += _copies(pairs, provable, hashes)
        computed = [pair for pair in pairs if pair[0].action == "compute" and pair[0].spec == pair[1].spec]
        exactly, entries, errors = _same_arithmetic(plan, receipt), 0, {}
        if computed:
            differing, entries, errors = recompute(Bench.of(plan, files, tick), computed, full=full, exactly=exactly)
            findings += [*differing, *_wrong_errors(receipt, errors)]
    checked = _checked(plan, entries) | {"inputs": len({*stored} - {*checkpoint.tensors.values()})}
    checked["inputs_unchanged"] = checked["inputs"] - len(changed)
    copied = sum(target.action == "copy" and target.name in provable for target in plan.targets)
    checked |= {"zeros": {zero.tensor: zero.ratio for zero in zeros}, "receipts": followed, "errors": errors}
    behind = f"; {followed} receipt(s) behind it hold" * bool(followed)
    proof = _proof(checked, copied, exactly) + words(zeros) + _errors(errors) + behind
    return Verdict(str(folder), CLAIM, proof, tuple(findings), checked)


def _wrong_errors(receipt: ReceiptFacts, errors: Mapping[str, float]) -> Iterator[Finding]:
    """Where the receipt tells another error of a weight that was quantised again than is found."""
    for name, found in errors.items():
        said = receipt.tensors[name].error
        if said is None or abs(said - found) > 0.01 * max(said, found):
            yield mismatch(name, f"was quantised with an error of {found:.2e}; the receipt says {said}")


def _errors(errors: Mapping[str, float]) -> str:
    if not errors:
        return ""
    worst = max(errors.values())
    return f"; {len(errors)} weights were quantised again, ‖Ŵ − W‖/‖W‖ {worst:.1e} at most"


def _copies(
    pairs: Sequence[tuple[Target, Stored]], inputs: Mapping[str, Mapping[str, Stored]], hashes: Mapping[Stored, str]
) -> Iterator[Finding]:
    for target, stored in pairs:
        for label, source in inputs[target.name].items() if target.action == "copy" else ():
            if hashes[stored] != hashes[source]:
                yield mismatch(target.name, f"is not a byte copy of {label}")


def _checked(plan: Plan, entries: int) -> dict[str, Any]:
    computed = [target.spec.count for target in plan.targets if target.action == "compute"]
    share = entries / sum(computed) if sum(computed) else 1.0
    copied = len(plan.targets) - len(computed)
    return {"tensors": len(plan.targets), "copied": copied, "computed": len(computed), "recomputed_share": share}


def _proof(checked: Mapping[str, Any], copied: int, exactly: bool) -> str:
    proof = f"holds {checked['tensors']} tensors as its receipt says, {copied} of them byte copies of the inputs"
    if not checked["computed"]:
        return proof
    share = checked["recomputed_share"]
    entries = "every entry" if share == 1 else f"{share:.0%} of the entries"
    how = "bit for bit" if exactly else "within one rounding (made in another environment)"
    return f"{proof}; {entries} of the {checked['computed']} computed tensors recomputed from the inputs {how}"


def _same_arithmetic(plan: Plan, receipt: ReceiptFacts) -> bool:
    """Whether the same bytes are promised here: tier A on one architecture, tier B in one environment."""
    now = made_with(plan)
    keys = ("machine", "device") if plan.tier == "A" else ("machine", "device", "torch", "cpu_capability", "gpu")
    return all(now.get(key) == receipt.made_with.get(key) for key in keys)
