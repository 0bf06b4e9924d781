"""What is published of an output: files that are sent, and shards that the Hub copies from where they came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.engine.receipt import NAME
from surgeon.store.checkpoint import INDEXES
from surgeon.store.header import read_header

#: Files beyond this size are stored outside git by the Hub, as weights always are.
_LARGE = 10_000_000


@dataclass(frozen=True)
class Sent:
    """A file that is uploaded, or a text."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def is_large(self) -> bool:
        """Whether it goes to the store of large files; else it is part of the commit, in base64."""
        return self.name.endswith(".safetensors") or self.size > _LARGE

    @property
    def wire(self) -> int:
        """The bytes that are sent for it."""
        return self.size if self.is_large else 4 * -(-self.size // 3)


@dataclass(frozen=True)
class Copied:
    """A shard that is byte for byte one of a model on the Hub, at a commit."""

    name: str
    repo: str
    revision: str
    source: str
    size: int


@dataclass(frozen=True)
class Publication:
    """All files of a repository: those sent, in the order of their names, and those copied on the Hub."""

    repo: str
    sent: tuple[Sent, ...]
    copied: tuple[Copied, ...]

    @property
    def wire(self) -> int:
        """The bytes that are sent: what the Hub has already is not sent again, and Xet may find more that it has."""
        return sum(one.wire for one in self.sent)

    @property
    def names(self) -> set[str]:
        """The names of all files."""
        return {one.name for one in (*self.sent, *self.copied)}


def publication(folder: Path, receipt: Mapping[str, Any], repo: str, card: bytes, *, copies: bool) -> Publication:
    """The publication of a folder by its (proven) receipt; with `copies`, unchanged shards are copied on the Hub."""
    copied = tuple(_copies(folder, receipt)) if copies else ()
    taken = {one.name for one in copied}
    names = [name for name in (*receipt["files"], *receipt["side_files"]["blake3"], NAME) if name not in taken]
    names += [name for name in INDEXES if (folder / name).is_file()]
    names += [path.relative_to(folder).as_posix() for path in (folder / "surgeon").rglob("*") if path.is_file()]
    sent = [Sent("README.md", card), *(Sent(name, folder / name) for name in names)]
    return Publication(repo, tuple(sorted(sent, key=lambda one: one.name)), copied)


def _copies(folder: Path, receipt: Mapping[str, Any]) -> Iterator[Copied]:
    """Shards whose tensors are all copies of one input at a commit, in a file of the same header: the same bytes."""
    inputs = {one["name"]: one for one in receipt["inputs"] if one["revision"]}
    for name, facts in receipt["files"].items():
        held = {tensor: one for tensor, one in receipt["tensors"].items() if one["file"] == name}
        label = _origin(held)
        if label not in inputs:
            continue
        header = read_header(folder / name).digest
        for source, other in inputs[label]["files"].items():
            if other == {"size": facts["size"], "header": header}:
                repo = inputs[label]["ref"].partition("@")[0]
                yield Copied(name, repo, inputs[label]["revision"], source, facts["size"])
                break


def _origin(tensors: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The input that all of these tensors are copies of, under their own names."""
    labels = set()
    for name, one in tensors.items():
        sources = [label.removesuffix(f"/{name}") for label in one["inputs"] if label.endswith(f"/{name}")]
        labels.add(sources[0] if one["action"] == "copy" and len(one["inputs"]) == len(sources) == 1 else None)
    return labels.pop() if len(labels) == 1 else None
