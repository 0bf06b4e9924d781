"""The receipts behind a receipt: those of its inputs, of their inputs, and so on, as far as they are here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from surgeon.engine.receipt import NAME
from surgeon.errors import SurgeonError
from surgeon.measuring.receipt_file import InputFacts, ReceiptFacts, receipt_in
from surgeon.measuring.verdict import Finding, note, unknown
from surgeon.planning.plan import Readable
from surgeon.planning.sources import open_sources
from surgeon.recipe.load import parse
from surgeon.store.adapter import Adapter
from surgeon.store.checkpoint import Checkpoint

_AGAIN = "take the input of that time, or prove it by itself: surgeon verify INPUT"


def follow(receipt: ReceiptFacts, sources: Sequence[Readable]) -> tuple[list[Finding], int]:
    """What does not hold of the receipts behind one, and how many do. `sources` are its inputs, in its order.

    Every receipt must be the one that was named, and say of each tensor the hash it was read with.
    """
    findings: list[Finding] = []
    held: set[str] = set()
    _follow(receipt, sources, "", findings, held)
    return findings, len(held)


def _follow(
    receipt: ReceiptFacts, sources: Sequence[Readable], above: str, findings: list[Finding], held: set[str]
) -> None:
    for facts, source in zip(receipt.inputs, sources, strict=False):
        if facts.receipt is None or facts.receipt in held or not isinstance(source, Checkpoint | Adapter):
            continue
        label = f"{above}{facts.name}"
        behind = _named(facts, source.root / NAME, label, findings)
        if behind is None:
            continue
        found = list(_against(facts, receipt, behind, label))
        findings += found
        if not found:
            held.add(facts.receipt)
        if any(one.receipt for one in behind.inputs):
            try:
                deeper = _sources(behind, source.root)
            except SurgeonError as error:
                findings.append(note(label, f"what it was made from is not here ({error.message})"))
            else:
                _follow(behind, deeper, f"{label} › ", findings, held)


def _named(facts: InputFacts, path: Path, label: str, findings: list[Finding]) -> ReceiptFacts | None:
    """The receipt of an input, where it is the one that was named."""
    if not path.is_file():
        findings.append(unknown(label, "an input whose own receipt is gone", _AGAIN))
    elif blake3(path.read_bytes()).hexdigest() != facts.receipt:
        findings.append(unknown(label, "an input whose own receipt is not the one it had when it was used", _AGAIN))
    else:
        try:
            return receipt_in(path)
        except SurgeonError as error:
            findings.append(unknown(label, f"an input whose own receipt cannot be read ({error.message})", _AGAIN))
    return None


def _against(facts: InputFacts, receipt: ReceiptFacts, behind: ReceiptFacts, label: str) -> Iterator[Finding]:
    """Tensors that were not, when they were read, what the input's own receipt says."""
    prefix = f"{facts.name}/"
    read = {
        name.removeprefix(prefix): digest
        for tensor in receipt.tensors.values()
        for name, digest in tensor.inputs.items()
        if name.startswith(prefix)
    }
    for name, digest in sorted(read.items()):
        if name in behind.tensors and behind.tensors[name].blake3 != digest:
            yield unknown(f"{label}/{name}", "an input that was not what its own receipt says", _AGAIN)


def _sources(receipt: ReceiptFacts, root: Path) -> list[Readable]:
    recipe = parse(receipt.recipe.resolved, file=str(root / NAME), folder=root / "surgeon").recipe
    files_from = recipe.output.files_from
    return list(open_sources(recipe.expr, *([files_from] if files_from is not None else [])).values())
