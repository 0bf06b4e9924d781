"""The header of a safetensors file, read as if an attacker had written it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import blake3

from surgeon.errors import CheckpointError
from surgeon.store.formats import conversion, disguise
from surgeon.store.json_files import parse_object
from surgeon.tensors import BITS, TensorSpec

#: Bytes a header may have, the limit of the format.
LIMIT = 100_000_000

_LARGEST = 2**63 - 1
_AGAIN = "the file is damaged or incomplete: fetch or save it again"


class Stored(NamedTuple):
    """Where a tensor's bytes are: `offset` is counted from the start of the file."""

    file: Path
    offset: int
    spec: TensorSpec

    @property
    def place(self) -> str:
        """What tells it from others in text: its spec too, for an empty tensor lies where the next one begins."""
        return f"{self.file}\0{self.offset}\0{self.spec}"


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds, in the order of its bytes; `digest` is the BLAKE3 of the header's JSON."""

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]
    digest: str


def read_header(path: Path) -> Header:
    """Read and check the header of one file; CheckpointError when anything about it is wrong."""
    raw, size = _header_bytes(path)
    entries = parse_object(raw, f"{path} (header)")
    metadata = _metadata(entries.pop("__metadata__", {}), path)
    start = 8 + len(raw)
    spans = [_span(name, entry, size - start, path) for name, entry in entries.items()]
    spans.sort(key=lambda span: span[1:3])
    _check_cover(spans, size - start, path)
    tensors = {name: Stored(path, start + begin, spec) for name, begin, _, spec in spans}
    return Header(tensors, metadata, blake3.blake3(raw).hexdigest())


def _header_bytes(path: Path) -> tuple[bytes, int]:
    """The JSON bytes and the size of the file."""
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file", hint="check the path; every shard must be there")
        with path.open("rb") as file:
            start, size = file.read(9), os.fstat(file.fileno()).st_size
            length = int.from_bytes(start[:8], "little")
            _check_start(start, length, size, path)
            file.seek(8)
            raw = file.read(length)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", hint="check the path and its permissions") from None
    if len(raw) != length:
        raise CheckpointError(f"{path}: the header ends after {len(raw)} of {length} bytes", hint=_AGAIN)
    return raw, size


def _check_start(start: bytes, length: int, size: int, path: Path) -> None:
    """Refuse what is no safetensors file by its first nine bytes."""
    if start[8:] == b"{" and length <= min(LIMIT, size - 8):
        return
    kind = disguise(start)
    if kind:
        raise CheckpointError(f"{path}: no safetensors file but {kind}; not opened", hint=conversion(kind, str(path)))
    if size < 9:
        raise CheckpointError(f"{path}: {size} bytes are too few for a safetensors file", hint=_AGAIN)
    if length > LIMIT:
        raise CheckpointError(f"{path}: claims a header of {length} bytes; the format allows {LIMIT}", hint=_AGAIN)
    if length > size - 8:
        raise CheckpointError(f"{path}: truncated: a header of {length} bytes in a file of {size}", hint=_AGAIN)
    raise CheckpointError(f"{path}: the header is not a JSON object", hint=_AGAIN)


def _metadata(value: Any, path: Path) -> dict[str, str]:
    texts = (*value, *value.values()) if isinstance(value, dict) else (None,)
    if not all(isinstance(text, str) and _encodable(text) for text in texts):
        raise CheckpointError(f"{path}: __metadata__ must map strings to strings, all of them Unicode", hint=_AGAIN)
    return value


def _span(name: str, entry: Any, room: int, path: Path) -> tuple[str, int, int, TensorSpec]:
    """(name, begin, end, spec) of one tensor, offsets counted from the end of the header."""
    fault = _fault(name, entry, room)
    if fault:
        raise CheckpointError(f"{path}: tensor {name!a}: {fault}", hint=_AGAIN)
    begin, end = entry["data_offsets"]
    return name, begin, end, TensorSpec(entry["dtype"], tuple(entry["shape"]))


def _fault(name: str, entry: Any, room: int) -> str:
    """What is wrong with one tensor's entry; '' when nothing is."""
    if not name or not _encodable(name):
        return "not a name"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return f"must have exactly dtype, shape and data_offsets, found {_short(entry)}"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"unknown dtype {_short(dtype)}; known: {', '.join(BITS)}"
    if not _sizes(shape):
        return f"shape must be a list of non-negative integers, found {_short(shape)}"
    if not _sizes(offsets) or len(offsets) != 2:
        return f"data_offsets must be two non-negative integers, found {_short(offsets)}"
    begin, end = offsets
    if begin > end or end > room:
        return f"bytes {begin}..{end} do not lie in the {room} bytes of data (truncated file?)"
    bits = _bits(dtype, shape, limit=8 * room)
    if bits is None:
        return f"{dtype}{_short(shape)} is larger than the file"
    return "" if bits == 8 * (end - begin) else f"{dtype}{_short(shape)} takes {bits / 8:g} bytes, found {end - begin}"


def _sizes(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    for size in value:  # noqa: SIM110  a loop: this runs twice a tensor, and all() costs twice as much
        if type(size) is not int or not 0 <= size <= _LARGEST:
            return False
    return True


def _bits(dtype: str, shape: list[int], limit: int) -> int | None:
    """Bits of a tensor, None beyond `limit`: stops early, so a bomb of huge sizes costs nothing."""
    if 0 in shape:
        return 0
    bits = BITS[dtype]
    for size in shape:
        bits *= size
        if bits > limit:
            return None
    return bits


def _check_cover(spans: list[tuple[str, int, int, TensorSpec]], room: int, path: Path) -> None:
    """Tensors must follow one another from the first byte of the data to the last."""
    reached, before = 0, "the header"
    for name, begin, end, _ in spans:
        if begin != reached:
            kind = "overlaps" if begin < reached else f"leaves a hole of {begin - reached} bytes after"
            raise CheckpointError(f"{path}: tensor {name!a} at {begin}..{end} {kind} {before}", hint=_AGAIN)
        reached, before = end, f"tensor {name!a}"
    if reached != room:
        raise CheckpointError(f"{path}: {room - reached} bytes after {before} belong to no tensor", hint=_AGAIN)


def _encodable(text: str) -> bool:
    """False for lone surrogates, which JSON can smuggle into a string but no file or terminal can take."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _short(value: Any) -> str:
    """A glimpse of a value that may be huge."""
    if isinstance(value, list | dict):
        items = list(value)[:8]
        return f"[{', '.join(_short(item) for item in items)}{', …' if len(value) > 8 else ''}]"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return "an integer beyond 63 bits"
    text = f"{value!a}" if not isinstance(value, int | float) else str(value)
    return text if len(text) <= 60 else text[:60] + "…"
