"""What lies in a folder of weights, and which file is meant to hold each tensor; headers alone are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError
from surgeon.store.containment import names_in
from surgeon.store.formats import refuse_folder
from surgeon.store.header import Header, Stored, read_header
from surgeon.store.json_files import read_object

SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"

_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


@dataclass(frozen=True)
class Index:
    """An index: tensor → file, whether it has the key `metadata`, and what is wrong with it ('': nothing)."""

    weight_map: Mapping[str, str]
    has_metadata: bool
    fault: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """The files it names, each once."""
        return tuple(sorted(set(self.weight_map.values())))


@dataclass(frozen=True)
class Folder:
    """The names in a folder, the headers of its safetensors files, and why others could not be read."""

    root: Path
    names: frozenset[str]
    headers: Mapping[str, Header]
    damaged: Mapping[str, str]
    index: Index | None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The parsed config.json, {} where there is none. CheckpointError where it is damaged."""
        return read_object(self.root / "config.json") if "config.json" in self.names else {}

    @cached_property
    def meant(self) -> Mapping[str, str]:
        """Tensor → the file meant to hold it: by the index, else the single file, else all shards."""
        if self.index is not None and not self.index.fault:
            return self.index.weight_map
        files = [SINGLE] if SINGLE in self.names else [name for name in sorted(self.names) if _SHARD.fullmatch(name)]
        return self.holding(files)

    @property
    def files(self) -> tuple[str, ...]:
        """The weight files that are meant."""
        return tuple(sorted(set(self.meant.values())))

    def holding(self, files: Sequence[str]) -> dict[str, str]:
        """Tensor → the file that a reader takes it from, who reads these in this order: the last that holds it."""
        return {name: file for file in files if file in self.headers for name in self.headers[file].tensors}

    def stored(self, tensor: str) -> Stored | None:
        """Where a tensor lies in the file meant to hold it; None where it does not."""
        header = self.headers.get(self.meant.get(tensor, ""))
        return header.tensors.get(tensor) if header else None


def read_folder(root: Path) -> Folder:
    """Look into the folder of a model. CheckpointError where it holds no weights that servers look for."""
    folder = look(root)
    if not (folder.meant or SINGLE in folder.names or INDEX in folder.names):
        raise refuse_folder(folder.names, str(root))
    return folder


def look(root: Path) -> Folder:
    """Look into a folder, whatever weights it holds. CheckpointError where it is none."""
    if not root.is_dir():
        raise CheckpointError(f"{root}: no such folder", hint="give the folder that a server is to load")
    names = frozenset(names_in(root))
    headers, damaged = {}, {}
    for name in sorted(name for name in names if name.endswith(".safetensors")):
        try:
            headers[name] = read_header(root / name)
        except CheckpointError as error:
            damaged[name] = error.message
    return Folder(root, names, headers, damaged, _index(root) if INDEX in names else None)


def _index(root: Path) -> Index:
    try:
        held = read_object(root / INDEX)
    except CheckpointError as error:
        return Index({}, False, error.message)
    found = held.get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        return Index({}, "metadata" in held, "has no weight_map of tensors and files")
    return Index(found, "metadata" in held)
