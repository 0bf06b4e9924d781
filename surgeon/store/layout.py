"""Where every tensor of an output goes: files, header bytes, offsets and index, from names, dtypes and shapes alone.

The same specs give the same bytes. Inside a file tensors lie as safetensors' own writer puts them: dtypes from wide to
narrow, then by name, so that all are aligned and nothing lies between them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

from surgeon.errors import RefusedError
from surgeon.store.header import LIMIT as MAX_HEADER
from surgeon.tensors import TensorSpec, human_bytes

_SUFFIX = ".safetensors"
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors", re.DOTALL)

#: Where one of these is found in a weight file's name, one server or another skips it or takes it for something else.
_MISREAD = re.compile(r"^(consolidated|adapter|\.)|/|args|arguments|training")

_WIDE_TO_NARROW = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E5M2FNUZ", "F8_E4M3FNUZ",
    "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "F6_E3M2", "F6_E2M3", "F4", "BOOL",
)  # fmt: skip
_RANK = {dtype: rank for rank, dtype in enumerate(_WIDE_TO_NARROW)}


@dataclass(frozen=True)
class Placement:
    """Where one tensor lies: its file and the absolute byte offset in it."""

    file: str
    offset: int
    spec: TensorSpec


@dataclass(frozen=True)
class ShardFile:
    """One weight file: header with its 8-byte length, size in bytes, tensors in file order."""

    name: str
    header: bytes
    size: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """All weight files of an output; an index only where there are several."""

    files: tuple[ShardFile, ...]
    tensors: Mapping[str, Placement]
    index_name: str | None

    @cached_property
    def index(self) -> bytes | None:
        """The bytes of the index; spelled when they are asked for, which planning does not."""
        return None if self.index_name is None else _index(self.tensors)


def lay_out(specs: Mapping[str, TensorSpec], shard_of: Mapping[str, str] | None, shard_size: int | None) -> Layout:
    """Places every tensor: in new shards of at most `shard_size` bytes, else as `shard_of` (tensor → file) has them."""
    if not specs:
        raise RefusedError("the result holds no tensor", hint="let output.drop match fewer tensors")
    sources = sorted({shard_of[name] for name in specs if name in shard_of}, key=_natural) if shard_of else []
    if sources and shard_size is None:
        groups = _as_source(specs, shard_of or {}, sources)
    else:
        groups = _greedy(specs, shard_size, _stem(sources))
    placements: dict[str, Placement] = {}
    files = tuple(one_file(name, members, specs, placements) for name, members in groups.items())
    if len(files) == 1:
        return Layout(files, placements, None)
    return Layout(files, placements, f"{_stem(list(groups))}{_SUFFIX}.index.json")


def same_as_source(shard: ShardFile, source: Path) -> bool:
    """Whether a file has this shard's very header and size: where no tensor changes, it can be copied whole."""
    with source.open("rb") as file:
        return file.read(len(shard.header)) == shard.header and source.stat().st_size == shard.size


def one_file(
    name: str,
    members: Iterable[str],
    specs: Mapping[str, TensorSpec],
    placements: dict[str, Placement],
    metadata: Mapping[str, str] | None = None,
) -> ShardFile:
    """One file of these tensors; each one's place is added to `placements`. A checkpoint's metadata is its format."""
    ordered = sorted(members, key=lambda tensor: (_RANK[specs[tensor].dtype], tensor))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"} if metadata is None else metadata}
    ends = [0, *accumulate(specs[tensor].nbytes for tensor in ordered)]
    for tensor, span in zip(ordered, pairwise(ends), strict=True):
        entries[tensor] = {"dtype": specs[tensor].dtype, "shape": specs[tensor].shape, "data_offsets": span}
    header = _header(name, entries)
    for tensor, start in zip(ordered, ends, strict=False):
        placements[tensor] = Placement(name, len(header) + start, specs[tensor])
    return ShardFile(name, header, len(header) + ends[-1], tuple(ordered))


def _header(name: str, entries: Mapping[str, object]) -> bytes:
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) >= MAX_HEADER:
        raise RefusedError(
            f"the header of {name} would take {human_bytes(len(text))} for {len(entries) - 1} tensors; "
            f"readers refuse more than {human_bytes(MAX_HEADER)}",
            hint="set output.shard_size (for example 5GB), so that the tensors are spread over more files",
        )
    return len(text).to_bytes(8, "little") + text


def _index(placements: Mapping[str, Placement]) -> bytes:
    specs = [place.spec for place in placements.values()]
    metadata = {"total_parameters": sum(s.count for s in specs), "total_size": sum(s.nbytes for s in specs)}
    weight_map = {name: placements[name].file for name in sorted(placements)}
    return (json.dumps({"metadata": metadata, "weight_map": weight_map}, ensure_ascii=False, indent=2) + "\n").encode()


def _greedy(specs: Mapping[str, TensorSpec], shard_size: int | None, stem: str) -> dict[str, list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, spec in specs.items():
        if shard_size is not None and shards[-1] and filled + spec.nbytes > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += spec.nbytes
    return dict(zip(_numbered(stem, len(shards)), shards, strict=True))


def _as_source(
    specs: Mapping[str, TensorSpec], shard_of: Mapping[str, str], sources: Sequence[str]
) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {source: [] for source in sources}
    here = next(shard_of[name] for name in specs if name in shard_of)
    for name in specs:
        # A tensor the source does not have joins the one named before it.
        here = shard_of.get(name, here)
        members[here].append(name)
    return dict(zip(_names(sources), members.values(), strict=True))


def _names(sources: Sequence[str]) -> Sequence[str]:
    """The source's names where servers read them and they are still a full set; else numbered anew."""
    counts = [match["count"] for source in sources if (match := _NUMBERED.fullmatch(source))]
    one_family = len(set(map(_stem_of, sources))) == 1
    incomplete = counts and (len(sources) == 1 or int(counts[0]) != len(sources))
    if any(map(_misread, sources)) or (one_family and incomplete):
        return _numbered(_stem(sources), len(sources))
    return sources


def _misread(file: str) -> bool:
    return bool(_MISREAD.search(file)) or not file.endswith(_SUFFIX)


def _stem_of(file: str) -> str:
    match = _NUMBERED.fullmatch(file)
    return match["stem"] if match else file.removesuffix(_SUFFIX)


def _stem(files: Sequence[str]) -> str:
    """What all the names begin with (`model`, `diffusion_pytorch_model`); `model` where they do not agree."""
    stems = {_stem_of(file) for file in files}
    return stems.pop() if len(stems) == 1 and not any(map(_misread, files)) else "model"


def _numbered(stem: str, count: int) -> Sequence[str]:
    if count == 1:
        return [f"{stem}{_SUFFIX}"]
    return [f"{stem}-{number:05d}-of-{count:05d}{_SUFFIX}" for number in range(1, count + 1)]


def _natural(name: str) -> tuple[tuple[str, ...], tuple[int, ...], str]:
    """Sorts shard 2 before shard 10, also where the numbers are not padded."""
    parts = re.split(r"(\d+)", name)
    return tuple(parts[0::2]), tuple(map(int, parts[1::2])), name
