"""`surgeon export gguf`, `gguf-adapter` and `control-vector`: what llama.cpp reads."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import OutputError, RefusedError
from surgeon.space.expr import Expr, Model
from surgeon.space.output import Recipe
from surgeon.tensors import human_bytes

if TYPE_CHECKING:
    from surgeon.artifacts.direction import Direction
    from surgeon.engine.events import Listener


@dataclass(frozen=True)
class FileExport:
    """A file written, what it is, and what its receipt says."""

    file: Path
    what: str
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"file": str(self.file), "export": self.what, **self.facts}

    def summary(self) -> str:
        """One line."""
        error = f", error {self.facts['error']:.1e}" if "error" in self.facts else ""
        left = f"; left out: {', '.join(self.facts['dropped'])}" if self.facts.get("dropped") else ""
        return f"wrote {self.file}: {self.what}, {human_bytes(self.file.stat().st_size)}{error}{left}"


def export_gguf(
    what: Expr | Recipe | str | Path,
    out: str | Path,
    *,
    dtype: str = "bfloat16",
    device: str = "auto",
    overrides: Mapping[str, str] | None = None,
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> FileExport:
    """Write a model as one GGUF file with its tokenizer, in float32, bfloat16 or q8_0.

    `what` is a checkpoint, or a recipe or expression, which is applied into a folder beside OUT first, in its own
    dtype. Families and tokenizers that are not written are refused by name. Beside the file lies its receipt.
    """
    from surgeon.ship.gguf_model import model_file
    from surgeon.verbs.export_patch import checkpoint_of

    path = Path(out).expanduser()
    with _room(path, overwrite) as partial_file, checkpoint_of(what, path, device, overrides or {}, on_event) as held:
        error = model_file(held, dtype).write(partial_file, path.stem, on_event)
        facts = {"dtype": dtype, "error": error, "tensors": len(held.tensors)}
        _receipt(path, "gguf", held, on_event, facts)
    return FileExport(path, f"a model in {dtype}", facts)


def export_gguf_adapter(
    what: Expr | Recipe | str | Path,
    out: str | Path,
    *,
    base: Model | str | Path | None = None,
    rank: int | None = None,
    error: float | None = None,
    drop: Sequence[str] = (),
    device: str = "auto",
    overrides: Mapping[str, str] | None = None,
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> FileExport:
    """Write the difference between a model and its base as a LoRA adapter for llama.cpp; settings as `export_adapter`.

    It carries embeddings too, where the base has a head of its own.
    """
    from surgeon.ship.factors import limit
    from surgeon.ship.gguf_adapter import gguf_misfit, write_gguf_adapter
    from surgeon.ship.gguf_names import naming, need_gguf
    from surgeon.verbs.export import error_of, extraction

    need_gguf()
    path = Path(out).expanduser()
    found = extraction(what, base, limit(rank, error), device, overrides or {})
    names = naming(found.base.config)
    with _room(path, overwrite) as partial_file:
        each, dropped = found.changes(drop, on_event, partial(gguf_misfit, found.base.config))
        changes = {name: one[0] for name, one in each.items()}
        write_gguf_adapter(partial_file, changes, names, path.stem)
        tensors = {name: {"rank": one.rank, "error": one.error} for name, one in changes.items()}
        facts = {"error": error_of([*changes.values()]), "tensors": tensors, "dropped": list(dropped)}
        _receipt(path, "gguf-adapter", found.base, on_event, facts)
    return FileExport(path, f"an adapter of {len(changes)} tensors", facts)


def export_control_vector(
    direction: Direction | str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    at: str = "",
    layers: tuple[int, int] | None = None,
    strength: float = 1.0,
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> FileExport:
    """Write a direction as a control vector for llama.cpp: `strength` times it is added to the stream after blocks.

    A bank is added after each block of its own, one point's (`at`) after its block, or after each of `layers` [first,
    end). Rows are written as they are: at strength 1 what is added has their length. With `base` its width and depth
    are checked, and its receipt names the base's hash.
    """
    from surgeon.artifacts.direction import Direction
    from surgeon.ship.control_vector import layers_of, write_control_vector
    from surgeon.ship.gguf_names import need_gguf

    need_gguf()
    path = Path(out).expanduser()
    held = direction if isinstance(direction, Direction) else Direction.load(Path(direction).expanduser())
    label = str(held.about.get("name") or direction)
    held.check(label)
    model = _base(base, held, label, layers)
    vectors = {number: strength * row for number, row in layers_of(held, at, layers, label).items()}
    with _room(path, overwrite) as partial_file:
        kind = "" if model is None else str(model.config.get("model_type", ""))
        write_control_vector(partial_file, vectors, kind or str(held.about.get("model_ref", "unknown")))
        facts = {"blocks": sorted(vectors), "strength": strength, "error": 0.0, "direction": held.digest}
        facts["measured_on"] = held.about.get("model")
        _receipt(path, "control-vector", model, on_event, facts)
    return FileExport(path, f"a control vector after {len(vectors)} blocks", facts)


def _base(ref: str | Path | None, held: Direction, label: str, layers: tuple[int, int] | None) -> Any:
    """The checkpoint that a control vector is for, its width and depth compared; None where none is named."""
    from surgeon.store.checkpoint import Checkpoint
    from surgeon.store.source import open_source

    if ref is None:
        return None
    model = open_source(str(ref), probe=True)
    if not isinstance(model, Checkpoint):
        raise RefusedError(f"{ref} is an adapter; name the model")
    width, depth = model.config.get("hidden_size"), model.config.get("num_hidden_layers")
    if width != held.width:
        raise RefusedError(f"{label} is {held.width} wide and {ref} {width}")
    if layers is not None and not 0 <= layers[0] < layers[1] <= int(depth or 0):
        raise RefusedError(f"layers {layers[0]}..{layers[1]} do not lie in the model's 0..{depth}")
    return model


def _receipt(path: Path, kind: str, base: Any, listener: Listener | None, facts: Mapping[str, Any]) -> None:
    from surgeon.ship.base_hash import EXPORTED, export_receipt

    content = export_receipt(kind, base, listener, facts)
    path.with_name(f".{path.name}.{EXPORTED}").write_bytes(content)


@contextmanager
def _room(path: Path, overwrite: bool) -> Iterator[Path]:
    """Where the file is written; it and its receipt bear their names once both are whole, and leave nothing else."""
    from surgeon.ship.base_hash import EXPORTED
    from surgeon.store.files import disk_errors, sync_path

    if path.is_dir() or (path.exists() and not overwrite):
        raise OutputError(f"{path} exists", hint="choose another file, or add --overwrite")
    receipt = path.with_name(f"{path.name}.{EXPORTED}")
    with disk_errors("making room", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        number, held = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(number)
    written = Path(held), path.with_name(f".{receipt.name}")
    try:
        yield written[0]
        with disk_errors("finishing", path):
            for partial_file, final in zip(written, (path, receipt), strict=True):
                partial_file.chmod(0o644)
                sync_path(partial_file)
                partial_file.replace(final)
    finally:
        for partial_file in written:
            partial_file.unlink(missing_ok=True)
