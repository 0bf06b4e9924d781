"""A plan to a finished output folder: locked, journalled, resumable, renamed once."""

from __future__ import annotations

import errno
from pathlib import Path

from blake3 import blake3

from surgeon.engine.card import model_card
from surgeon.engine.events import Listener
from surgeon.engine.journal import Journal, Record
from surgeon.engine.receipt import NAME, Receipt, input_files, plan_key, receipt_content, to_json
from surgeon.engine.run import run
from surgeon.engine.workspace import Workspace
from surgeon.errors import OutputError, SurgeonError
from surgeon.planning.plan import Plan
from surgeon.store.layout import same_as_source
from surgeon.store.side_files import side_files
from surgeon.store.writer import FolderWriter


def build(
    plan: Plan,
    out: Path,
    *,
    given: str | None,
    resolved: str,
    overwrite: bool = False,
    resume: bool | None = None,
    listener: Listener | None = None,
) -> Receipt:
    """Run a plan into OUT. An interrupted or failed-for-space build stays resumable; bad input leaves nothing."""
    inputs = {source.root for source in plan.sources.values()} | input_files(plan)
    key = plan_key(plan, resolved)
    with Workspace(out, key, overwrite=overwrite, resume=resume, inputs=sorted(inputs)) as workspace:
        writer = FolderWriter(workspace.folder, plan.layout)
        try:
            _refuse_foreign(workspace.out)
            writer.create()
            _check_finished(plan, writer, workspace.journal)
            copied = _copy_whole_files(plan, writer, workspace.journal)
            done = run(plan, writer, workspace.journal, listener, copied)
            content = _finish(plan, writer, done, given, resolved)
        except SurgeonError as error:
            writer.close()
            if not _resumable(error):
                workspace.discard()
            raise
        finally:
            writer.close()
        workspace.commit()
        return Receipt(workspace.out / NAME, content)


def _refuse_foreign(out: Path) -> None:
    """Only a checkpoint may be overwritten: a mistyped OUT must not cost a home or a project folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out.is_dir() and any(map(_is_weights, out.iterdir()))):
        hint = "choose another output folder, or remove this one yourself"
        raise OutputError(f"{out} is no checkpoint, and only a checkpoint is overwritten", hint=hint)


def _is_weights(path: Path) -> bool:
    return path.name == NAME or path.name.endswith((".safetensors", ".safetensors.index.json"))


def _resumable(error: SurgeonError) -> bool:
    """Whether trying again may go on from here: the disk was full, say. A fault of the input would only recur."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def _check_finished(plan: Plan, writer: FolderWriter, journal: Journal) -> None:
    """Hash again what the journal calls finished; what does not match is forgotten."""
    good = [record for record in journal.read().values() if _matches(plan, writer, record)]
    journal.restart(good)


def _copy_whole_files(plan: Plan, writer: FolderWriter, journal: Journal) -> frozenset[str]:
    """Copy at once every file that comes out as it went in: a file system that shares blocks then moves no bytes."""
    targets, done = {target.name: target for target in plan.targets}, journal.read()
    copied: set[str] = set()
    for shard in plan.layout.files:
        held = [targets[name] for name in shard.tensors]
        sources = {target.stored.file for target in held if target.stored is not None and target.action == "copy"}
        whole = len(sources) == 1 and all(target.action == "copy" for target in held)
        if whole and not done.keys() >= set(shard.tensors) and same_as_source(shard, source := sources.pop()):
            writer.copy_file(shard, source)
            copied |= set(shard.tensors)
    return frozenset(copied)


def _matches(plan: Plan, writer: FolderWriter, record: Record, at_once: int = 8 << 20) -> bool:
    place = plan.layout.tensors.get(record.tensor)
    if place is None:
        return False
    hasher, size = blake3(), place.spec.nbytes
    for start in range(0, size, at_once):
        hasher.update(writer.read(record.tensor, start, min(at_once, size - start)))
    return hasher.hexdigest() == record.digest


def _finish(
    plan: Plan, writer: FolderWriter, done: dict[str, Record], given: str | None, resolved: str
) -> dict[str, object]:
    sides = [(path, path.relative_to(plan.files_from.root).as_posix()) for path in side_files(plan.files_from)]
    texts = config_changes(plan)
    hashes = {name: blake3(texts.get(name) or path.read_bytes()).digest() for path, name in sides}
    content = receipt_content(plan, done, given, resolved, hashes)
    texts |= {NAME: to_json(content), "README.md": model_card(plan, resolved).encode()}
    writer.finish(sides, texts | {"surgeon/recipe.yaml": resolved.encode()})
    return content


def config_changes(plan: Plan) -> dict[str, bytes]:
    """Side files that a change of dtype rewrites: config.json names the dtype of the weights, under both its names."""
    from surgeon.engine.config import with_dtype

    path = plan.files_from.root / "config.json"
    if plan.recipe.output.dtype is None or plan.files_from.single_file or not path.is_file():
        return {}
    changed = with_dtype(path.read_bytes(), plan.recipe.output.dtype)
    return {} if changed is None else {"config.json": changed}
