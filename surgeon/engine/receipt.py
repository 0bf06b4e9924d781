"""The receipt, `surgeon.json`: what was made of what, tensor by tensor, with the hashes that prove it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from surgeon.artifacts.artifact import Artifact
from surgeon.engine.devices import choose
from surgeon.engine.journal import Record
from surgeon.planning.plan import Plan
from surgeon.store.adapter import Adapter
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.header import Stored, read_header
from surgeon.tensors import human_bytes

VERSION = 1
NAME = "surgeon.json"


@dataclass(frozen=True)
class Receipt:
    """A receipt as written; `content` is its JSON."""

    path: Path
    content: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The receipt's JSON."""
        return dict(self.content)

    def summary(self) -> str:
        """One sentence for the terminal."""
        tensors = self.content["tensors"].values()
        computed = sum(tensor["action"] == "compute" for tensor in tensors)
        size = sum(file["size"] for file in self.content["files"].values())
        return (
            f"wrote {self.path.parent}: {computed} tensors computed, {len(tensors) - computed} copied, "
            f"{human_bytes(size)} in {len(self.content['files'])} file(s)"
        )


def receipt_content(
    plan: Plan, done: Mapping[str, Record], given: str | None, resolved: str, side: Mapping[str, bytes]
) -> dict[str, Any]:
    """The receipt of a finished plan. `side` holds the blake3 of every side file by name."""
    names = _input_names(plan)
    return {
        "version": VERSION,
        "recipe": {"given": given, "resolved": resolved},
        "inputs": [_input(name, source) for name, source in _named(plan)],
        "files": {
            file.name: {"size": file.size, "header": blake3(file.header).hexdigest()} for file in plan.layout.files
        },
        "side_files": {"from": plan.files_from.ref, "blake3": {n: d.hex() for n, d in sorted(side.items())}},
        "tensors": {
            target.name: {
                "action": target.action, "reason": target.reason, "dtype": target.spec.dtype,
                "shape": list(target.spec.shape), "file": plan.layout.tensors[target.name].file,
                "blake3": done[target.name].digest,
                "inputs": {names[key]: digest for key, digest in sorted(done[target.name].inputs.items())},
            }
            for target in plan.targets
        },
        "dropped": list(plan.dropped),
        "invariants": [],
        "tier": plan.tier,
        "made_with": made_with(plan),
    }  # fmt: skip


def made_with(plan: Plan) -> dict[str, str]:
    """What a tier-B result's bytes depend on: versions, CPU capability or device."""
    device = choose(plan.options.device)
    about = {name: importlib.metadata.version(name) for name in ("model-surgeon", "torch", "numpy") if _installed(name)}
    about |= {"python": platform.python_version(), "machine": platform.machine(), "device": device.type}
    if device.type == "cpu":
        about["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    elif device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def plan_key(plan: Plan, resolved: str) -> str:
    """The identity of a build: recipe, inputs as they lie on disk, layout, versions; a build resumes only itself."""
    hasher = blake3(resolved.encode())
    about = {k: v for k, v in made_with(plan).items() if plan.tier == "B" or k == "model-surgeon"}
    hasher.update(json.dumps([about, plan.options.allow_nan], sort_keys=True).encode())
    for path in sorted(input_files(plan)):
        status = path.stat()
        hasher.update(f"\0{path}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    settings = (value for step in plan.steps.values() for _, value in step.settings)
    for digest in sorted({value.digest for value in settings if isinstance(value, Artifact)}):
        hasher.update(digest.encode())
    for file in plan.layout.files:
        hasher.update(file.name.encode() + b"\0" + file.header)
    return hasher.hexdigest()


def input_files(plan: Plan) -> set[Path]:
    """Every weight file the plan may read."""
    return {stored.file for source in plan.sources.values() for _, stored in stored_tensors(source)}


def to_json(content: Mapping[str, Any]) -> bytes:
    """A receipt's bytes."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _input(name: str, source: Checkpoint | Adapter) -> dict[str, Any]:
    files = {stored.file for _, stored in stored_tensors(source)}
    return {
        "name": name,
        "kind": "model" if isinstance(source, Checkpoint) else "adapter",
        "ref": source.ref,
        "revision": source.revision,
        "files": {
            file.name: {"size": file.stat().st_size, "header": read_header(file).digest} for file in sorted(files)
        },
    }


def stored_tensors(source: Checkpoint | Adapter) -> list[tuple[str, Stored]]:
    """Every stored tensor of a source, with what the receipt calls it within the source."""
    if isinstance(source, Checkpoint):
        return list(source.tensors.items())
    parts = ("a", "b", "magnitude", "value")
    found = []
    for name, updates in source.updates.items():
        for update in updates:
            held = ((part, getattr(update, part, None)) for part in parts)
            found += [(f"{name}:{part}", stored) for part, stored in held if stored is not None]
    return found


def _named(plan: Plan) -> list[tuple[str, Checkpoint | Adapter]]:
    """Each source with the name the recipe gives it; a second one of a name is numbered."""
    named: dict[str, Checkpoint | Adapter] = {}
    for model, source in plan.sources.items():
        name, number = str(model), 2
        while name in named:
            name, number = f"{model}_{number}", number + 1
        named[name] = source
    return list(named.items())


def _input_names(plan: Plan) -> dict[str, str]:
    return {
        stored.place: f"{label}/{name}" for label, source in _named(plan) for name, stored in stored_tensors(source)
    }
