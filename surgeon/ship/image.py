"""What a checkpoint folder is, bit for bit: its weight files, the hash of every tensor, the files beside them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from blake3 import blake3
from pydantic import BaseModel, ConfigDict

from surgeon.engine.reading import DiskReader
from surgeon.engine.receipt import NAME
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.files import Files
from surgeon.store.fingerprint import fingerprint
from surgeon.store.header import Stored
from surgeon.store.side_files import side_files
from surgeon.tensors import TensorSpec


class Facts(BaseModel):
    """A part of a patch's manifest: no key more, no key less."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileFacts(Facts):
    """A weight file: its size in bytes and the blake3 of its header, the eight bytes of its length included."""

    size: int
    header: str


class TensorFacts(Facts):
    """A tensor: what it is, its file, and the blake3 of its bytes."""

    dtype: str
    shape: list[int]
    file: str
    blake3: str

    @property
    def spec(self) -> TensorSpec:
        """Dtype and shape."""
        return TensorSpec(self.dtype, tuple(self.shape))


class Image(Facts):
    """A folder. `hash` is that of all tensors by name (`content_hash`); `sides` holds the blake3 of files by name."""

    ref: str
    revision: str | None
    hash: str
    fingerprint: str
    files: dict[str, FileFacts]
    tensors: dict[str, TensorFacts]
    sides: dict[str, str]


def image_of(checkpoint: Checkpoint, tick: Callable[[Stored], None]) -> Image:
    """Read a checkpoint once, from its first byte to its last; `tick` is told of every tensor."""
    tensors = {}
    with closing(Files()) as files:
        reader = DiskReader(files, torch.device("cpu"))
        for name, stored in checkpoint.tensors.items():
            reader.begin()
            digest = reader.digest_of(stored)
            tensors[name] = TensorFacts(
                dtype=stored.spec.dtype, shape=list(stored.spec.shape), file=stored.file.name, blake3=digest
            )
            tick(stored)
    paths = {stored.file for stored in checkpoint.tensors.values()}
    return Image(
        ref=checkpoint.ref,
        revision=checkpoint.revision,
        hash=content_hash({name: (facts.spec, facts.blake3) for name, facts in tensors.items()}),
        fingerprint=fingerprint(checkpoint),
        files={path.name: _file_facts(path) for path in sorted(paths)},
        tensors=tensors,
        sides={name: blake3(path.read_bytes()).hexdigest() for name, path in sides_of(checkpoint).items()},
    )


def content_hash(tensors: dict[str, tuple[TensorSpec, str]]) -> str:
    """blake3 (hex) of a model: of every tensor's name, dtype, shape and blake3, by name; wherever they lie."""
    hasher = blake3()
    for name, (spec, digest) in sorted(tensors.items()):
        hasher.update(f"\0{name}\0{spec}\0{digest}".encode())
    return hasher.hexdigest()


def sides_of(checkpoint: Checkpoint) -> dict[str, Path]:
    """The files beside the weights by relative name: side files, index, card, and what surgeon left there."""
    if checkpoint.single_file:
        return {}
    root = checkpoint.root
    found = [*side_files(checkpoint), *root.glob("*.safetensors.index.json"), root / "README.md", root / NAME]
    kept = root / "surgeon"
    if kept.is_dir() and not kept.is_symlink():
        found += kept.rglob("*")
    names = {path.relative_to(root).as_posix(): path for path in found}
    return {name: path for name, path in sorted(names.items()) if path.is_file() and not (root / name).is_symlink()}


def header_of(path: Path) -> bytes:
    """The header of a weight file with the eight bytes of its length."""
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(int.from_bytes(length, "little"))


def _file_facts(path: Path) -> FileFacts:
    return FileFacts(size=path.stat().st_size, header=blake3(header_of(path)).hexdigest())
