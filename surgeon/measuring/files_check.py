"""Whether a folder's files are what its receipt lists: weights, index, side files, every tensor's hash."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path

from blake3 import blake3

from surgeon.engine.reading import Files
from surgeon.engine.receipt import NAME
from surgeon.errors import CheckpointError, RunError
from surgeon.measuring.pool import each
from surgeon.measuring.receipt_file import ReceiptFacts
from surgeon.measuring.verdict import Finding, mismatch, note
from surgeon.store.checkpoint import INDEXES, Checkpoint, open_checkpoint
from surgeon.store.formats import PICKLES
from surgeon.store.header import Stored, read_header
from surgeon.store.json_files import read_object
from surgeon.store.side_files import is_side_file

RESOLVED = "surgeon/recipe.yaml"

_WEIGHTS = (".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", *PICKLES)
_AT_ONCE = 4 << 20


def check_files(folder: Path, receipt: ReceiptFacts) -> tuple[list[Finding], Checkpoint | None]:
    """Everything but the tensors' values; and the checkpoint, where it can be opened."""
    findings = [*_weight_files(folder, receipt), *_side_files(folder, receipt), *_recipe(folder, receipt)]
    findings += _modes(folder)
    try:
        checkpoint = open_checkpoint(folder, str(folder))
    except CheckpointError as error:
        return [*findings, mismatch("weights", error.message)], None
    return [*findings, *_index(folder, checkpoint), *_tensors(checkpoint, receipt)], checkpoint


def check_hashes(
    checkpoint: Checkpoint, receipt: ReceiptFacts, files: Files, tick: Callable[[int], None]
) -> tuple[list[Finding], dict[str, str]]:
    """Hash every tensor; what differs from the receipt, and the hashes by name."""
    names = sorted(checkpoint.tensors, key=lambda name: -checkpoint.tensors[name].spec.nbytes)
    digests = dict(zip(names, digests_of([checkpoint.tensors[name] for name in names], files, tick), strict=True))
    wrong = [
        name for name in checkpoint.tensors if name in receipt.tensors and digests[name] != receipt.tensors[name].blake3
    ]
    return [mismatch(name, "the bytes are not those the receipt has the hash of") for name in wrong], digests


def digests_of(stored: list[Stored], files: Files, tick: Callable[[int], None]) -> list[str]:
    """The blake3 of each stored tensor's bytes; '' where the file no longer holds it."""

    def digest(one: Stored) -> str:
        hasher, buffer = blake3(), memoryview(bytearray(min(_AT_ONCE, one.spec.nbytes)))
        try:
            for start in range(0, one.spec.nbytes, _AT_ONCE):
                part = buffer[: min(_AT_ONCE, one.spec.nbytes - start)]
                files.fill(one, start, part)
                hasher.update(part)
                tick(len(part))
        except RunError:
            return ""
        return hasher.hexdigest()

    return each(digest, stored)


def _weight_files(folder: Path, receipt: ReceiptFacts) -> Iterator[Finding]:
    for name, facts in receipt.files.items():
        path = folder / name
        if not path.is_file():
            yield mismatch(name, "a weight file is missing")
            continue
        if path.stat().st_size != facts.size:
            yield mismatch(name, f"has {path.stat().st_size} bytes, the receipt says {facts.size}")
        try:
            header = read_header(path)
        except CheckpointError as error:
            yield mismatch(name, error.message)
            continue
        if _framed(path) != facts.header:
            yield mismatch(name, "the header is not the one the receipt has the hash of")
        if header.metadata != {"format": "pt"}:
            yield mismatch(name, f"the header's metadata are {header.metadata!a}, not format pt")
    for name in stray_weights(folder, receipt.files):
        yield mismatch(name, "a weight file that the receipt does not list", "remove it: loaders may pick it up")


def stray_weights(folder: Path, known: Container[str]) -> list[str]:
    """The names of weight files in a folder that are not among those known; none beside a single file."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if name.endswith(_WEIGHTS) and name not in known]


def _framed(path: Path) -> str:
    """The digest of a header with the eight bytes of its length before it, as the writer lays it down."""
    with path.open("rb") as file:
        length = file.read(8)
        return blake3(length + file.read(int.from_bytes(length, "little"))).hexdigest()


def _side_files(folder: Path, receipt: ReceiptFacts) -> Iterator[Finding]:
    for name, digest in receipt.side_hashes.items():
        path = folder / name
        data = None if Path(name).is_absolute() or ".." in Path(name).parts else _read(path)
        if data is None:
            yield mismatch(name, "a file that the receipt lists is missing or may not be read")
        elif blake3(data).hexdigest() != digest:
            yield mismatch(name, "changed since it was written")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and is_side_file(name) and name not in receipt.side_hashes:
            yield mismatch(name, "a file that belongs to a model and that the receipt does not list")


def _recipe(folder: Path, receipt: ReceiptFacts) -> Iterator[Finding]:
    data = _read(folder / RESOLVED)
    if data is None:
        yield mismatch(RESOLVED, "the resolved recipe is missing or may not be read")
    elif data != receipt.recipe.resolved.encode():
        yield mismatch(RESOLVED, f"differs from the recipe in {NAME}")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _modes(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.rglob("*")):
        if not os.access(path, os.R_OK):
            yield mismatch(path.relative_to(folder).as_posix(), "may not be read", "chmod 644 the file")
        elif path.is_file() and not path.stat().st_mode & 0o004:
            yield note(path.relative_to(folder).as_posix(), "is not readable for other users, such as a server's")


def _index(folder: Path, checkpoint: Checkpoint) -> Iterator[Finding]:
    """The weight map itself was compared with the headers when the checkpoint was opened."""
    several = len(set(checkpoint.shard_of.values())) > 1
    found = [name for name in INDEXES if (folder / name).exists()]
    if not several and found:
        yield mismatch(found[0], "an index beside weights in a single file")
    for name in found if several else ():
        metadata = read_object(folder / name).get("metadata")
        size = sum(stored.spec.nbytes for stored in checkpoint.tensors.values())
        if not isinstance(metadata, dict) or metadata.get("total_size") != size:
            yield mismatch(name, f"total_size is not {size}, the bytes of all tensors")


def _tensors(checkpoint: Checkpoint, receipt: ReceiptFacts) -> Iterator[Finding]:
    found: Mapping[str, Stored] = checkpoint.tensors
    for name in sorted(receipt.tensors.keys() - found.keys()):
        yield mismatch(name, "a tensor that the receipt lists is missing")
    for name in sorted(found.keys() - receipt.tensors.keys()):
        yield mismatch(name, "a tensor that the receipt does not list")
    for name in sorted(found.keys() & receipt.tensors.keys()):
        facts, spec = receipt.tensors[name], found[name].spec
        if (facts.dtype, tuple(facts.shape)) != (spec.dtype, spec.shape):
            yield mismatch(name, f"is {spec}, the receipt says {facts.dtype}{facts.shape}")
        if facts.file != checkpoint.shard_of[name]:
            yield mismatch(name, f"lies in {checkpoint.shard_of[name]}, the receipt says {facts.file}")
