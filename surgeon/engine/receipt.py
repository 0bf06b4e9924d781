"""The receipt, `surgeon.json`: what was made of what, tensor by tensor, with the hashes that prove it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from blake3 import blake3

from surgeon.artifacts.artifact import Artifact
from surgeon.artifacts.per_tensor import PerTensor
from surgeon.engine.devices import choose
from surgeon.engine.journal import Record
from surgeon.planning.plan import Plan, Readable
from surgeon.planning.step import Target
from surgeon.store.adapter import Adapter
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.header import read_header
from surgeon.store.source import RECEIPT
from surgeon.tensors import human_bytes
from surgeon.version import VERSION

FORMAT = 1
NAME = RECEIPT


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
            f"{human_bytes(size)} in {len(self.content['files'])} file(s){self._quantised()}"
        )

    def _quantised(self) -> str:
        """What quantising weights again has cost, in words; '' where none was."""
        errors = {name: one["error"] for name, one in self.content["tensors"].items() if "error" in one}
        if not errors:
            return ""
        told = f"; {len(errors)} weights quantised again, ‖Ŵ − W‖/‖W‖ at most {max(errors.values()):.1e}"
        zeros = [zero for zero in self.content["invariants"] if zero["tensor"] in errors and zero["before"]]
        left = max((zero["after"] / zero["before"] for zero in zeros), default=None)
        return told if left is None else f"{told}; of the directions removed ‖RᵀW'‖/‖RᵀW‖ at most {left:.1e} is back"


def receipt_content(
    plan: Plan,
    done: Mapping[str, Record],
    given: str | None,
    resolved: str,
    side: Mapping[str, bytes],
    artifacts: Mapping[str, Artifact],
) -> dict[str, Any]:
    """The receipt of a finished plan. `side` holds the blake3 of every side file, `artifacts` what lies in surgeon/."""
    names = _input_names(plan)
    return {
        "version": FORMAT,
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
                **_error(done[target.name]),
            }
            for target in plan.targets
        },
        "dropped": list(plan.dropped),
        "artifacts": {name: artifact.digest for name, artifact in sorted(artifacts.items())},
        "invariants": [
            described(target, done[target.name].left, artifacts) for target in plan.targets if target.promise
        ],
        "tier": plan.tier,
        "made_with": made_with(plan),
    }  # fmt: skip


def _error(record: Record) -> dict[str, float]:
    """What quantising a weight again has moved it by, ‖Ŵ − W‖/‖W‖, where it was."""
    return {} if record.error is None else {"error": record.error}


def described(target: Target, left: Sequence[float] | None, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """A promise as the receipt holds it: ‖QᵀW‖ before the edit and in the bytes written, and what Q is made of."""
    promise, names = target.promise, {artifact.digest: name for name, artifact in artifacts.items()}
    assert promise is not None
    assert left is not None
    return {
        "tensor": target.name, "zero": "QᵀW", "edit": promise.edit, "axis": promise.axis,
        "directions": [{"file": names[held.digest], "point": point} for held, point in promise.directions],
        "gains": list(promise.gains), "gain": promise.gain, "before": left[0], "after": left[1],
    }  # fmt: skip


def made_with(plan: Plan) -> dict[str, str]:
    """What a tier-B result's bytes depend on: versions, CPU capability or device."""
    device = choose(plan.options.device)
    about = {"model-surgeon": VERSION, "torch": str(torch.__version__), "numpy": numpy.__version__}
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
    for digest in sorted({artifact.digest for artifact in _artifacts(plan)}):
        hasher.update(digest.encode())
    for file in plan.layout.files:
        hasher.update(file.name.encode() + b"\0" + file.header)
    return hasher.hexdigest()


def _artifacts(plan: Plan) -> Iterator[Artifact]:
    """The artifacts of a plan's settings, however often each is used."""
    seen: dict[int, Artifact] = {}
    for step in plan.steps.values():
        for name, value in step.settings:
            held = [one for one, _ in value] if name == "directions" else [value]
            seen |= {id(one): one for one in held if isinstance(one, Artifact)}
    yield from seen.values()


def input_files(plan: Plan) -> set[Path]:
    """Every weight file the plan may read."""
    return {stored.file for _, source in plan.inputs for stored in source.stored.values()}


def _input(name: str, source: Readable) -> dict[str, Any]:
    files = {stored.file for stored in source.stored.values()}
    kind = "model" if isinstance(source, Checkpoint) else "adapter" if isinstance(source, Adapter) else source.kind
    return {
        "name": name,
        "kind": kind,
        "ref": source.ref,
        "revision": None if isinstance(source, PerTensor) else source.revision,
        "receipt": _receipt_of(source),
        "files": {
            file.name: {"size": file.stat().st_size, "header": read_header(file).digest} for file in sorted(files)
        },
    }


def _receipt_of(source: Readable) -> str | None:
    """The blake3 of an input's own receipt, by which `verify` follows where it came from; a single file has none."""
    if isinstance(source, PerTensor) or (isinstance(source, Checkpoint) and source.single_file):
        return None
    path = source.root / NAME
    return blake3(path.read_bytes()).hexdigest() if path.is_file() else None


def _named(plan: Plan) -> list[tuple[str, Readable]]:
    """Each input with the name the recipe gives it; a second one of a name is numbered."""
    named: dict[str, Readable] = {}
    for label, source in plan.inputs:
        name, number = label, 2
        while name in named:
            name, number = f"{label}_{number}", number + 1
        named[name] = source
    return list(named.items())


def _input_names(plan: Plan) -> dict[str, str]:
    return {stored.place: f"{label}/{name}" for label, source in _named(plan) for name, stored in source.stored.items()}
