"""A patch: a folder that turns one checkpoint into another and back, bound to the hashes of both.

    patch.json                    both checkpoints, bit for bit, by hash; which tensors change by factors
    model.safetensors             tensors that are replaced, as they are in the result: vLLM's reload_weights takes it
    undo/model.safetensors        the same tensors as they are in the base
    surgeon/factors.safetensors   left and right factors, corrections and codes of tensors that change by factors
    surgeon/files/base|result/    headers and files beside the weights that differ

What is in none of these is copied from the checkpoint at hand, under whatever name its bytes are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from surgeon.errors import CheckpointError
from surgeon.ship.factored import Factored, pack, unpack
from surgeon.ship.image import Facts, Image
from surgeon.store.checkpoint import Checkpoint, open_checkpoint
from surgeon.store.json_files import read_object

MANIFEST = "patch.json"
FACTORS = "surgeon/factors.safetensors"
UNDO = "undo"
Side = Literal["base", "result"]

_AGAIN = "export it again: surgeon export patch"


class FactorFacts(Facts):
    """Where the factors of a tensor lie, and how many corrections and codes (by their width in bits) it has."""

    scale: float
    left: str
    right: str
    corrections: int
    codes: dict[str, int]


class Manifest(Facts):
    """What patch.json holds."""

    version: Literal[1]
    made_with: str
    base: Image
    result: Image
    factors: dict[str, FactorFacts]
    reverts: bool


@dataclass(frozen=True)
class Patch:
    """An opened patch."""

    root: Path
    manifest: Manifest

    def image(self, side: Side) -> Image:
        """One of the two checkpoints."""
        return self.manifest.base if side == "base" else self.manifest.result

    def files(self, side: Side) -> Path:
        """Where headers and side files of one of the two lie."""
        return self.root / "surgeon" / "files" / side

    def dense(self, side: Side) -> Checkpoint | None:
        """Tensors that are held as they are in the base or in the result; None where there are none."""
        folder = self.root if side == "result" else self.root / UNDO
        held = any(folder.glob("model*.safetensors"))
        return open_checkpoint(folder, str(folder)) if held else None

    @cached_property
    def _tensors(self) -> Mapping[str, np.ndarray]:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(self.root / FACTORS) if self.manifest.factors else {}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.root / FACTORS} cannot be read: {error}", hint=_AGAIN) from None

    def factored(self, name: str) -> Factored:
        """The factors of a tensor. CheckpointError where the file lacks something of them."""
        import torch

        facts, base, result = self.manifest.factors[name], self.manifest.base, self.manifest.result
        try:
            places, moves = _corrections(self._tensors, name, facts.corrections)
            return Factored(
                base.tensors[name].spec,
                result.tensors[name].spec,
                facts.scale,
                torch.from_numpy(self._tensors[facts.left]),
                torch.from_numpy(self._tensors[facts.right]),
                places,
                moves,
                {int(width): count for width, count in facts.codes.items()},
                self._tensors[f"{name}:codes"].tobytes() if facts.codes else b"",
            )
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{self.root}: the factors of {name} are damaged: {error}", hint=_AGAIN) from None


def open_patch(folder: Path) -> Patch:
    """Read a patch's manifest, as if an attacker had written it."""
    if not (folder / MANIFEST).is_file():
        hint = "a patch is a folder as `surgeon export patch` writes it"
        raise CheckpointError(f"{folder}: no {MANIFEST}", hint=hint)
    try:
        return Patch(folder, Manifest.model_validate(read_object(folder / MANIFEST)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{folder / MANIFEST}: {where}: {first['msg']}", hint=_AGAIN) from None


class FactorsOut:
    """Collects the tensors of FACTORS; factors that several tensors share are held once."""

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self._known: dict[bytes, str] = {}

    def add(self, name: str, found: Factored) -> FactorFacts:
        """Keep the factors of a tensor; what the manifest says of them."""
        if len(found.places):
            self.tensors[f"{name}:corrections"] = np.frombuffer(pack(found.places, found.moves), np.uint8)
        if found.codes:
            self.tensors[f"{name}:codes"] = np.frombuffer(found.codes, np.uint8)
        return FactorFacts(
            scale=found.scale,
            left=self._shared(f"{name}:left", found.left.numpy()),
            right=self._shared(f"{name}:right", found.right.numpy()),
            corrections=len(found.places),
            codes={str(width): count for width, count in found.counts.items()},
        )

    def to_bytes(self) -> bytes:
        """The file."""
        from safetensors.numpy import save

        return save(self.tensors)

    def _shared(self, name: str, values: np.ndarray) -> str:
        from blake3 import blake3

        mark = blake3(repr(values.shape).encode() + values.tobytes()).digest()
        if mark not in self._known:
            self._known[mark], self.tensors[name] = name, values
        return self._known[mark]


def size_of(found: Factored) -> int:
    """Bytes that factors take, about: those that are shared are counted for each."""
    numbers = found.left.numel() + found.right.numel()
    return 4 * numbers + len(found.codes) + 2 * len(found.places)


def _corrections(tensors: Mapping[str, np.ndarray], name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    if not count:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return unpack(tensors[f"{name}:corrections"].tobytes(), count)
