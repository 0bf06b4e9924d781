"""What was built again from a receipt's inputs, against what the receipt says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from surgeon.measuring.files_check import against
from surgeon.measuring.receipt_file import ReceiptFacts
from surgeon.measuring.verdict import Finding, mismatch, note
from surgeon.tensors import TensorSpec

CLAIM = "what its inputs give"


def compare(receipt: ReceiptFacts, again: ReceiptFacts) -> Iterator[Finding]:
    """What differs between a receipt and that of another build of the same recipe, and why it may."""
    different = [*against(_tensors(again), _tensors(receipt), "tensor")]
    yield from different
    yield from against(_files(again), _files(receipt), "weight file")
    yield from against(_one(again.side_files.blake3), _one(receipt.side_files.blake3), "side file")
    yield from against(_one(again.artifacts), _one(receipt.artifacts), "artifact")
    if again.dropped != receipt.dropped:
        yield mismatch("dropped", "other tensors are dropped than the receipt lists")
    if different:
        yield from _causes(receipt, again, {finding.subject for finding in different})


def _causes(receipt: ReceiptFacts, again: ReceiptFacts, names: set[str]) -> Iterator[Finding]:
    changed = {
        label
        for name in names & receipt.tensors.keys() & again.tensors.keys()
        for label, digest in receipt.tensors[name].inputs.items()
        if again.tensors[name].inputs.get(label) != digest
    }
    for label in sorted(changed):
        yield note(label, "an input that is not what it was when the receipt was written")
    if changed:
        return
    other = {
        key: (value, again.made_with.get(key, ""))
        for key, value in receipt.made_with.items()
        if again.made_with.get(key) != value
    }
    for key, (then, now) in other.items():
        yield note(key, f"the inputs are the same, but it was made with {then}, and built again with {now}")


def _tensors(receipt: ReceiptFacts) -> dict[str, tuple[str, ...]]:
    return {
        name: (str(TensorSpec(facts.dtype, tuple(facts.shape))), facts.file, facts.blake3)
        for name, facts in receipt.tensors.items()
    }


def _files(receipt: ReceiptFacts) -> dict[str, tuple[str, ...]]:
    return {name: (str(facts.size), facts.header) for name, facts in receipt.files.items()}


def _one(digests: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {name: (digest,) for name, digest in digests.items()}
