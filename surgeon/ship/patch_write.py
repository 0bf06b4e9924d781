"""Makes a patch of two checkpoints: factors where a plan knows some that explain the change, else whole tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from surgeon.engine.events import Listener, Progress
from surgeon.engine.threads import one_torch_thread
from surgeon.engine.values import Values
from surgeon.errors import RefusedError
from surgeon.planning.plan import Plan
from surgeon.ship.factored import Factored, fitted
from surgeon.ship.image import Image, header_of, image_of, sides_of
from surgeon.ship.low_rank import changes
from surgeon.ship.patch_file import FACTORS, MANIFEST, UNDO, FactorFacts, FactorsOut, Manifest, Side, size_of
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.files import Files
from surgeon.store.header import Stored
from surgeon.store.layout import lay_out
from surgeon.store.writer import FolderWriter, settle
from surgeon.tensors import BITS, torch_dtype
from surgeon.version import VERSION

_SHARD = 5 * 10**9


@dataclass
class PatchWriter:
    """Base and result; `plan` made the result of the base, where that is known."""

    base: Checkpoint
    result: Checkpoint
    plan: Plan | None
    undo: bool
    listener: Listener | None
    factors: dict[str, FactorFacts] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> Manifest:
        """Write the patch into an empty folder. RefusedError where the two are equal."""
        total = sum(one.spec.nbytes for side in (self.base, self.result) for one in side.tensors.values())
        done = 0

        def tick(stored: Stored) -> None:
            nonlocal done
            done += stored.spec.nbytes
            if self.listener is not None:
                self.listener(Progress("hash", done, total, "bytes"))

        base, result = image_of(self.base, tick), image_of(self.result, tick)
        if base.hash == result.hash:
            raise RefusedError(f"{self.result.ref} is {self.base.ref}: there is nothing a patch could hold")
        new = [name for name in result.tensors if not _held(result, name, base)]
        gone = [name for name in base.tensors if not _held(base, name, result)]
        out = FactorsOut()
        with closing(Files()) as files, torch.inference_mode(), one_torch_thread():
            for number, name in enumerate(new):
                if self.listener is not None:
                    self.listener(Progress("fit", number, len(new), "tensors", name))
                if found := self._fitted(name, files):
                    self.factors[name] = out.add(name, found)
        self.replaced += [name for name in new if name not in self.factors]
        self._dense(folder, self.replaced, self.result)
        if self.undo:
            self._dense(folder / UNDO, [name for name in gone if name not in self.factors], self.base)
        reverts = self.undo or self.factors.keys() >= set(gone)
        manifest = Manifest(
            version=1, made_with=VERSION, base=base, result=result, factors=self.factors, reverts=reverts
        )
        texts = {MANIFEST: (json.dumps(manifest.model_dump(), ensure_ascii=False) + "\n").encode()}
        if self.factors:
            texts[FACTORS] = out.to_bytes()
        texts |= _files("result", self.result, result, base) | _files("base", self.base, base, result)
        _finish(folder, texts)
        return manifest

    def _fitted(self, name: str, files: Files) -> Factored | None:
        before, after = self.base.tensors.get(name), self.result.tensors[name]
        target = None if self.plan is None else next((one for one in self.plan.targets if one.name == name), None)
        if self.plan is None or before is None or target is None or target.action != "compute":
            return None
        steps = self.plan.steps
        key = next((step.key for step in steps.below(target.key) if step.stored == before), None)
        parts = None if key is None else changes(Values.of(self.plan, files), target.key, key)
        if not parts:
            return None
        found = fitted(before.spec, after.spec, parts, Reading(files, before), Reading(files, after))
        whole = after.spec.nbytes + (before.spec.nbytes if self.undo else 0)
        return found if found is not None and size_of(found) < whole else None

    def _dense(self, folder: Path, names: list[str], source: Checkpoint) -> None:
        """Copies of some tensors of one side, in a folder that a server reads."""
        if not names:
            return
        held = {name: source.tensors[name] for name in names}
        layout = lay_out({name: stored.spec for name, stored in held.items()}, None, _SHARD)
        with closing(FolderWriter(folder, layout)) as writer:
            writer.create()
            for number, (name, stored) in enumerate(held.items()):
                if self.listener is not None:
                    self.listener(Progress("write", number, len(held), "tensors", name))
                writer.copy(name, stored)
            writer.finish((), {})


class Reading:
    """Reads elements of one stored tensor, in its own dtype, in blocks."""

    def __init__(self, files: Files, stored: Stored) -> None:
        self._files, self._stored = files, stored

    def __call__(self, start: int, stop: int) -> Tensor:
        """Elements start to stop, flat."""
        size = BITS[self._stored.spec.dtype] // 8
        raw = torch.empty((stop - start) * size, dtype=torch.uint8)
        self._files.fill(self._stored, start * size, memoryview(raw.numpy()))
        return raw.view(torch_dtype(self._stored.spec.dtype))


def _held(image: Image, name: str, other: Image) -> bool:
    """Whether the other checkpoint holds these very bytes, under whatever name."""
    mine = image.tensors[name]
    same = other.tensors.get(name)
    if same is not None and same.spec == mine.spec and same.blake3 == mine.blake3:
        return True
    return any(one.blake3 == mine.blake3 and one.spec == mine.spec for one in other.tensors.values())


def _files(side: Side, checkpoint: Checkpoint, image: Image, other: Image) -> dict[str, bytes]:
    """The headers and side files of one of the two that are not the other's."""
    found = {}
    paths = {stored.file.name: stored.file for stored in checkpoint.tensors.values()}
    for name, facts in image.files.items():
        if name not in other.files or other.files[name].header != facts.header:
            found[f"surgeon/files/{side}/{name}.header"] = header_of(paths[name])
    for name, path in sides_of(checkpoint).items():
        if other.sides.get(name) != image.sides[name]:
            found[f"surgeon/files/{side}/{name}"] = path.read_bytes()
    return found


def _finish(folder: Path, texts: Mapping[str, bytes]) -> None:
    for name, data in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    settle(folder)
