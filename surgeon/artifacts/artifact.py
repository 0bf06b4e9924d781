"""The file format of artifacts: safetensors with one JSON metadata key, `surgeon`, and a digest of the content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from surgeon.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from surgeon.store.header import Header


@dataclass(frozen=True, eq=False)
class Artifact:
    """Named tensors plus what is known of them; equal when kind and content are."""

    kind: ClassVar[str] = "artifact"
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """blake3 of the kind, names, dtypes, shapes and bytes (hex)."""
        from blake3 import blake3

        hasher = blake3(self.kind.encode())
        for name, tensor in sorted(self.tensors.items()):
            hasher.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            hasher.update(tensor.detach().cpu().contiguous().flatten().numpy().tobytes())
        return hasher.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Artifact) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def to_bytes(self) -> bytes:
        """The one-file form."""
        from safetensors.torch import save

        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        return save(tensors, metadata=metadata_of(self.kind, self.about))

    def save(self, path: Path) -> None:
        """Write the one-file form."""
        path.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it back. CheckpointError when the file is not an artifact of this kind."""
        from safetensors import safe_open

        from surgeon.store.header import read_header

        about = head_of(read_header(path), path, cls.kind)
        with safe_open(path, framework="pt") as file:
            return cls({name: file.get_tensor(name) for name in file.keys()}, about)  # noqa: SIM118


def metadata_of(kind: str, about: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of an artifact's file."""
    return {"surgeon": json.dumps({"kind": kind, "about": dict(about)}, sort_keys=True, default=str)}


def head_of(header: Header, path: Path, kind: str) -> Mapping[str, Any]:
    """What a file says about the artifact in it. CheckpointError where it is none, or of another kind."""
    found, about = _head(header, path)
    if found != kind:
        raise CheckpointError(f"{path} holds {found!r}, not {kind!r}")
    return about


def kind_of(path: Path) -> str:
    """The kind of artifact that a file holds. CheckpointError where it holds none."""
    from surgeon.store.header import read_header

    return _head(read_header(path), path)[0]


def _head(header: Header, path: Path) -> tuple[str, Mapping[str, Any]]:
    try:
        head = json.loads(header.metadata["surgeon"])
        kind, about = head["kind"], head["about"]
    except (KeyError, TypeError, json.JSONDecodeError):
        raise CheckpointError(f"{path} is not an artifact: its metadata has no key `surgeon`") from None
    if not isinstance(kind, str) or not isinstance(about, Mapping):
        raise CheckpointError(f"{path} is not an artifact: what it says about itself is damaged")
    return kind, about
