"""A checkpoint on disk: a folder (one file, or shards with an index) or a single safetensors file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError
from surgeon.store.containment import contained, names_in
from surgeon.store.formats import PICKLES, conversion, listed, refuse_folder
from surgeon.store.header import Stored, read_header
from surgeon.store.json_files import read_object
from surgeon.store.quantised import Quantised, presented
from surgeon.store.quantised_formats import quantised
from surgeon.tensors import TensorSpec

#: Weights in one file, by the names model libraries look for.
SINGLES = ("model.safetensors", "diffusion_pytorch_model.safetensors")

#: The same in shards, each the index of the single file beside it in SINGLES.
INDEXES = tuple(f"{name}.index.json" for name in SINGLES)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors and where they lie; of a single file, `root` is the folder it lies in and has no side files."""

    ref: str
    root: Path
    revision: str | None
    tensors: Mapping[str, Stored]
    shard_of: Mapping[str, str]
    single_file: bool

    @property
    def stored(self) -> Mapping[str, Stored]:
        """Every stored tensor."""
        return self.tensors

    @cached_property
    def config(self) -> dict[str, Any]:
        """The parsed config.json, {} where there is none."""
        path = self.root / "config.json"
        return read_object(path) if not self.single_file and path.exists() else {}

    @cached_property
    def quantised(self) -> Quantised | None:
        """How its weights are quantised; None where they are stored as they are."""
        return quantised(self.config, self.tensors)

    @cached_property
    def table(self) -> Mapping[str, TensorSpec]:
        """Its tensors as arithmetic sees them: a weight that is stored in parts is one float tensor."""
        return presented(self.tensors, self.quantised)


def open_checkpoint(root: Path, ref: str, revision: str | None = None) -> Checkpoint:
    """Read the headers of a checkpoint folder, or of one .safetensors file."""
    if root.is_dir():
        tensors, shard_of = _read_folder(root, ref)
        return Checkpoint(ref, root, revision, tensors, shard_of, single_file=False)
    if root.suffix == ".gguf" or root.suffix in PICKLES:
        kind = "GGUF" if root.suffix == ".gguf" else "a pickle, which is never opened"
        raise CheckpointError(f"{root}: {kind}, not safetensors", hint=conversion(kind, str(root)))
    tensors = read_header(root).tensors
    return Checkpoint(ref, root.parent, revision, tensors, dict.fromkeys(tensors, root.name), single_file=True)


def weights_file(names: Collection[str], where: str) -> str:
    """Which of a folder's files the weights begin with: the index, or the single file."""
    for name in (*INDEXES, *SINGLES):
        if name in names:
            return name
    raise refuse_folder(names, where)


def read_index(path: Path, names: Collection[str]) -> dict[str, str]:
    """The weight map of an index: tensor → plain file name. `names`: the files beside it."""
    weight_map = read_object(path).get("weight_map")
    hint = "write the index again, or remove it if the model is in one file"
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: no weight_map", hint=hint)
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{path}: tensor {tensor!a} in {shard!a}, which is no safetensors file", hint=hint)
    single = path.name.removesuffix(".index.json")
    if single in names and single not in weight_map.values():
        raise CheckpointError(
            f"{path.parent}: holds both {single} and {path.name}, two checkpoints; libraries disagree on which counts",
            hint=f"remove one of them, or name the file itself: {path.parent / single}",
        )
    return weight_map


def _read_folder(root: Path, ref: str) -> tuple[Mapping[str, Stored], dict[str, str]]:
    """The tensors of all shards in file order, and the shard of each."""
    names = names_in(root)
    first = weights_file(names, str(root))
    path = contained(root, first, ref)
    if first in SINGLES:
        tensors = read_header(path).tensors
        return tensors, dict.fromkeys(tensors, first)
    weight_map = read_index(path, names)
    shards = {shard: contained(root, shard, str(path)) for shard in sorted(set(weight_map.values()))}
    missing = [shard for shard, path in shards.items() if not path.exists()]
    if missing:
        hint = "the download is incomplete: fetch the missing files"
        raise CheckpointError(f"{path}: names {len(missing)} missing file(s): {listed(missing)}", hint=hint)
    tensors, shard_of = {}, {}
    for shard, file in shards.items():
        for name, stored in read_header(file).tensors.items():
            if name in tensors:
                found = f"{root}: tensor {name!a} lies in both {shard_of[name]} and {shard}"
                raise CheckpointError(found, hint="remove one of the two, and write the index again")
            tensors[name], shard_of[name] = stored, shard
    _check_index(path, weight_map, shard_of)
    return tensors, shard_of


def _check_index(index: Path, weight_map: Mapping[str, str], shard_of: Mapping[str, str]) -> None:
    """The index must say of every tensor what the headers say."""
    lines = []
    for name in sorted(weight_map.keys() | shard_of.keys()):
        said, found = weight_map.get(name), shard_of.get(name)
        if found is None:
            lines.append(f"{name!a}: index says {said}, no such tensor")
        elif said is None:
            lines.append(f"{name!a}: in {found}, not in the index")
        elif said != found:
            lines.append(f"{name!a}: index says {said}, found in {found}")
    if lines:
        raise CheckpointError(
            f"{index}: disagrees with the shards on {len(lines)} tensor(s):\n  {listed(lines, 20, lines=True)}",
            hint="fetch the checkpoint again, or write the index again from the shards",
        )
