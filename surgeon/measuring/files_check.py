"""Whether a folder is what its receipt lists: weights, index, side files, and every tensor."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from blake3 import blake3

from surgeon.engine.receipt import NAME
from surgeon.errors import CheckpointError
from surgeon.measuring.receipt_file import ReceiptFacts
from surgeon.measuring.verdict import Finding, mismatch
from surgeon.store.checkpoint import INDEXES, Checkpoint, open_checkpoint
from surgeon.store.formats import PICKLES
from surgeon.store.header import Stored, read_header
from surgeon.store.json_files import read_object
from surgeon.store.side_files import is_side_file
from surgeon.tensors import TensorSpec

RESOLVED = "surgeon/recipe.yaml"

Facts = tuple[str, ...]

_WEIGHTS = (".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", *PICKLES)


def check_files(folder: Path, receipt: ReceiptFacts) -> tuple[list[Finding], Checkpoint | None]:
    """Everything but the tensors; and the checkpoint, where it can be opened."""
    findings = [*_weight_files(folder, receipt), *_side_files(folder, receipt)]
    if _digest(folder / RESOLVED) != blake3(receipt.recipe.resolved.encode()).hexdigest():
        findings.append(mismatch(RESOLVED, f"is not, or may not be read as, the resolved recipe in {NAME}"))
    try:
        checkpoint = open_checkpoint(folder, str(folder))
    except CheckpointError as error:
        return [*findings, mismatch("weights", error.message)], None
    return [*findings, *_index(folder, checkpoint)], checkpoint


def stray_weights(folder: Path, known: Container[str]) -> list[str]:
    """The names of weight files in a folder that are not among those known; none beside a single file."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if name.endswith(_WEIGHTS) and name not in known]


def against(found: Mapping[str, Facts], listed: Mapping[str, Facts], what: str) -> Iterator[Finding]:
    """What is not as the receipt lists it, by name; `what` these are."""
    for name in sorted(found.keys() | listed.keys()):
        if name not in found:
            yield mismatch(name, f"a {what} that the receipt lists is missing")
        elif name not in listed:
            yield mismatch(name, f"a {what} that the receipt does not list")
        elif found[name] != listed[name]:
            pairs = zip(found[name], listed[name], strict=True)
            detail = ", ".join(f"{one:.24}, not {other:.24}" for one, other in pairs if one != other)
            yield mismatch(name, f"a {what} that is not what the receipt says", detail=detail)


def check_tensors(checkpoint: Checkpoint, receipt: ReceiptFacts, hashes: Mapping[Stored, str]) -> Iterator[Finding]:
    """Every tensor's dtype, shape, place and bytes."""
    found = {
        name: (str(stored.spec), checkpoint.shard_of[name], hashes[stored])
        for name, stored in checkpoint.tensors.items()
    }
    listed = {
        name: (str(TensorSpec(facts.dtype, tuple(facts.shape))), facts.file, facts.blake3)
        for name, facts in receipt.tensors.items()
    }
    yield from against(found, listed, "tensor")


def _weight_files(folder: Path, receipt: ReceiptFacts) -> Iterator[Finding]:
    for name, facts in receipt.files.items():
        try:
            header = read_header(folder / name)
        except CheckpointError as error:
            yield mismatch(name, error.message)
            continue
        found = str((folder / name).stat().st_size), _framed(folder / name)
        yield from against({name: found}, {name: (str(facts.size), facts.header)}, "weight file")
        if header.metadata != {"format": "pt"}:
            yield mismatch(name, f"the header's metadata are {header.metadata!a}, not format pt")
    for name in stray_weights(folder, receipt.files):
        yield mismatch(name, "a weight file that the receipt does not list", "remove it: loaders may pick it up")


def _framed(path: Path) -> str:
    """The digest of a header with the eight bytes of its length before it, as the writer lays it down."""
    with path.open("rb") as file:
        length = file.read(8)
        return blake3(length + file.read(int.from_bytes(length, "little"))).hexdigest()


def _side_files(folder: Path, receipt: ReceiptFacts) -> Iterator[Finding]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found = {name: (_digest(folder / name),) for name in names if is_side_file(name)}
    yield from against(found, {name: (digest,) for name, digest in receipt.side_files.blake3.items()}, "side file")


def _digest(path: Path) -> str:
    """The blake3 of a file; '' where it is not there or may not be read."""
    try:
        return blake3(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _index(folder: Path, checkpoint: Checkpoint) -> Iterator[Finding]:
    """The weight map itself was compared with the headers when the checkpoint was opened."""
    several = len(set(checkpoint.shard_of.values())) > 1
    size = sum(stored.spec.nbytes for stored in checkpoint.tensors.values())
    for name in (name for name in INDEXES if (folder / name).exists()):
        metadata = read_object(folder / name).get("metadata")
        if not several:
            yield mismatch(name, "an index beside weights in a single file")
        elif not isinstance(metadata, dict) or metadata.get("total_size") != size:
            yield mismatch(name, f"total_size is not {size}, the bytes of all tensors")
