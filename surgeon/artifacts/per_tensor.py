"""Artifacts with an entry for each tensor of a model, in files that may be larger than memory.

Nothing but the header is read until an entry is asked for; a merge reads the entry of the tensor at hand as a step of
its plan, and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from typing_extensions import override

from surgeon.artifacts.artifact import Artifact, head_of
from surgeon.errors import CheckpointError
from surgeon.store.header import Stored, read_header

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Place(NamedTuple):
    """Where a tensor's entry is: several tensors may share one. `axis` is the tensor's that the entry speaks of."""

    entry: str
    axis: int = -1


@dataclass(frozen=True, eq=False)
class PerTensor(Artifact, ABC):
    """Entries by name; `about["tensors"]` maps a tensor of the model to its entry, its own name where it is not there.

    `file` is where the entries lie, `stored` their places in it; without one they are in memory. `about["models"]` are
    the fingerprints of what it was measured on.
    """

    #: Whether an entry has the tensor's own shape, and is cut into the same blocks.
    aligned: ClassVar[bool] = False
    #: Whether all models of a merge are measured together, while it is made.
    joint: ClassVar[bool] = False
    file: Path | None = None
    stored: Mapping[str, Stored] = field(default_factory=dict)

    @override
    @classmethod
    def load(cls, path: Path) -> Self:
        """Open it; no entry is read. CheckpointError when the file is not an artifact of this kind."""
        header = read_header(path)
        about = head_of(header, path, cls.kind)
        if misplaced := [name for name, place in _places(about, path).items() if place.entry not in header.tensors]:
            raise CheckpointError(f"{path}: {misplaced[0]} is given an entry that is not there")
        return cls(_Lazy(path, header.tensors), about, path, header.tensors)

    @property
    def models(self) -> frozenset[str]:
        """The fingerprints of the checkpoints and adapters it was measured on."""
        return frozenset(map(str, self.about.get("models") or ()))

    @property
    def ref(self) -> str:
        """What messages and receipts call it."""
        return str(self.file or self.about.get("name") or f"a {self.kind}")

    def place(self, tensor: str) -> Place | None:
        """Where the entry of a tensor is; None where there is none."""
        return self.places.get(tensor)

    @property
    def places(self) -> Mapping[str, Place]:
        """The place of every tensor that has an entry."""
        return _places(self.about, self.file) or {name: Place(name) for name in self.tensors}

    @classmethod
    @abstractmethod
    def example(cls, shape: tuple[int, ...], generator: torch.Generator) -> Tensor | None:
        """A random entry for a tensor of this shape, by which laws are tested; None where such a tensor has none."""

    @abstractmethod
    def fault(self, tensor: str, shape: tuple[int, ...]) -> str | None:
        """Why the entry of a tensor does not fit it, or None."""


class _Lazy(Mapping[str, "Tensor"]):
    """The tensors of a file, each read when it is asked for."""

    def __init__(self, path: Path, names: Collection[str]) -> None:
        self._path, self._names = path, names

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._path, framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _places(about: Mapping[str, Any], path: Path | None) -> dict[str, Place]:
    """The places that a file lists. CheckpointError where they are none."""
    listed = about.get("tensors", {})
    try:
        found = {str(tensor): Place(str(entry), int(axis)) for tensor, (entry, axis) in listed.items()}
    except (AttributeError, TypeError, ValueError):
        raise CheckpointError(f"{path}: its metadata do not say which tensor has which entry") from None
    if wrong := [tensor for tensor, place in found.items() if place.axis not in (-1, -2)]:
        raise CheckpointError(f"{path}: {wrong[0]} is given axis {found[wrong[0]].axis}; -1 or -2 is meant")
    return found
