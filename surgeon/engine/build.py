"""A plan to a finished output folder: locked, journalled, resumable, renamed once."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import closing
from copy import deepcopy
from pathlib import Path

import torch
from blake3 import blake3

from surgeon.artifacts.artifact import Artifact
from surgeon.artifacts.per_tensor import PerTensor
from surgeon.engine.card import model_card
from surgeon.engine.events import Listener
from surgeon.engine.journal import Journal, Record
from surgeon.engine.reading import DiskReader, Files
from surgeon.engine.receipt import NAME, Receipt, input_files, plan_key, receipt_content
from surgeon.engine.run import run
from surgeon.engine.workspace import Workspace, hidden, refuse_existing, refuse_overlap
from surgeon.errors import OutputError, SurgeonError
from surgeon.planning.plan import Plan
from surgeon.planning.step import Target
from surgeon.space.sides import Sides
from surgeon.store.files import disk_errors
from surgeon.store.header import Stored
from surgeon.store.layout import same_as_source
from surgeon.store.writer import FolderWriter
from surgeon.tensors import FLOATS

_DTYPE_KEYS = ("dtype", "torch_dtype")


def build(
    plan: Plan,
    out: Path,
    *,
    given: str | None,
    resolved: str,
    artifacts: Mapping[str, Artifact] | None = None,
    overwrite: bool = False,
    resume: bool | None = None,
    listener: Listener | None = None,
) -> Receipt:
    """Run a plan into OUT. An interrupted or failed-for-space build stays resumable; bad input leaves nothing.

    `artifacts` are kept in OUT/surgeon/ under their names, which `resolved` refers to.
    """
    key = plan_key(plan, resolved)
    with Workspace(out, key, overwrite=overwrite, resume=resume, inputs=_inputs(plan)) as workspace:
        try:
            _refuse_foreign(workspace.out)
            with closing(FolderWriter(workspace.folder, plan.layout)) as writer:
                writer.create()
                _check_finished(plan, workspace.folder, workspace.journal)
                copied = _copy_whole_files(plan, writer, workspace.journal)
                done = run(plan, writer, workspace.journal, listener, copied)
                content = _finish(plan, writer, done, given, resolved, artifacts or {})
        except SurgeonError as error:
            if not resumable(error):
                workspace.discard()
            raise
        workspace.commit()
        return Receipt(workspace.out / NAME, content)


def check_out(plan: Plan, out: Path, *, overwrite: bool) -> None:
    """Refuse, before anything is measured, the OUT that `build` would; one with a build beside it is left to that."""
    out = Path(os.path.realpath(out))
    with disk_errors("preparing the build", out):
        if not hidden(out).exists():
            refuse_overlap(out, _inputs(plan))
            refuse_existing(out, overwrite)
            _refuse_foreign(out)


def _inputs(plan: Plan) -> list[Path]:
    return sorted({source.root for source in plan.sources.values()} | input_files(plan))


def _refuse_foreign(out: Path) -> None:
    """Only a checkpoint may be overwritten: a mistyped OUT must not cost a home or a project folder."""
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    known = any(name == NAME or name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    if out.exists() and not known and (names or not out.is_dir()):
        hint = "choose another output folder, or remove this one yourself"
        raise OutputError(f"{out} is no checkpoint, and only a checkpoint is overwritten", hint=hint)


def resumable(error: SurgeonError) -> bool:
    """Whether trying again may go on from here: the disk was full, say. A fault of the input would only recur."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def _check_finished(plan: Plan, folder: Path, journal: Journal) -> None:
    """Hash again what the journal calls finished; what does not match is forgotten."""
    good = []
    with closing(Files()) as files:
        reader = DiskReader(files, torch.device("cpu"))
        for record in journal.read().values():
            place = plan.layout.tensors[record.tensor]
            reader.begin()
            if reader.digest_of(Stored(folder / place.file, place.offset, place.spec)) == record.digest:
                good.append(record)
    journal.restart(good)


def _in_place(target: Target, plan: Plan) -> bool:
    """Whether a tensor is a copy of what lies at the same offset: layers in another order fill a file alike."""
    place = plan.layout.tensors[target.name]
    return target.action == "copy" and target.stored is not None and target.stored.offset == place.offset


def _copy_whole_files(plan: Plan, writer: FolderWriter, journal: Journal) -> frozenset[str]:
    """Copy at once every file that comes out as it went in: a file system that shares blocks then moves no bytes."""
    targets, done = {target.name: target for target in plan.targets}, journal.read()
    copied: set[str] = set()
    for shard in plan.layout.files:
        held = [targets[name] for name in shard.tensors]
        sources = {target.stored.file for target in held if target.stored is not None and target.action == "copy"}
        whole = len(sources) == 1 and all(_in_place(target, plan) for target in held)
        if whole and not done.keys() >= set(shard.tensors) and same_as_source(shard, source := sources.pop()):
            writer.copy_file(shard, source)
            copied |= set(shard.tensors)
    return frozenset(copied)


def _finish(
    plan: Plan, writer: FolderWriter, done: dict[str, Record], given: str | None, resolved: str,
    artifacts: Mapping[str, Artifact],
) -> dict[str, object]:  # fmt: skip
    sides = Sides.of(plan.files_from).changed(plan.files).changed(_config_changes(plan)).files
    texts = {name: content for name, content in sides.items() if isinstance(content, bytes)}
    paths = [(content, name) for name, content in sides.items() if isinstance(content, Path)]
    hashes = {name: blake3(data).digest() for name, data in texts.items()}
    hashes |= {name: blake3(path.read_bytes()).digest() for path, name in paths}
    content = receipt_content(plan, done, given, resolved, hashes, artifacts)
    texts |= {NAME: _json(content, 1), "README.md": model_card(plan, resolved).encode()}
    for name, artifact in artifacts.items():
        if isinstance(artifact, PerTensor) and artifact.file is not None:
            paths.append((artifact.file, f"surgeon/{name}"))
        else:
            texts[f"surgeon/{name}"] = artifact.to_bytes()
    writer.finish(paths, texts | {"surgeon/recipe.yaml": resolved.encode()})
    return content


def _config_changes(plan: Plan) -> dict[str, bytes]:
    """config.json where a reshape changes it, or a cast the dtype it names (under both names); all else as written."""
    config, dtype = plan.files_from.config, plan.recipe.output.dtype
    changed = deepcopy(plan.written_config)
    if dtype is not None and config:
        for part in (changed, *(part for part in changed.values() if isinstance(part, dict))):
            if part is changed or any(key in part for key in _DTYPE_KEYS):
                part |= dict.fromkeys(_DTYPE_KEYS, FLOATS[dtype])
    return {} if changed == plan.files_from.config else {"config.json": _json(changed, 2)}


def _json(value: object, indent: int) -> bytes:
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode()
