"""`doctor`: whether this installation can work, and what to mend where it cannot."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from itertools import groupby
from pathlib import Path
from typing import Any

from surgeon.tensors import human_bytes
from surgeon.verbs._table import table
from surgeon.version import VERSION

OURS = "model-surgeon"

NEEDED = ["torch", "safetensors", "huggingface_hub", "pydantic", "ruamel.yaml", "rich", "typer", "numpy"]
NEEDED += ["transformers", "peft", "accelerate", "blake3"]
OPTIONAL = ["gguf", "matplotlib"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `problem` says what is wrong and what to do."""

    section: str
    name: str
    value: str
    problem: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything looked at."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """2 where something must be mended first."""
        return 2 if any(finding.problem for finding in self.findings) else 0

    def explain(self) -> str:
        """The findings by section, problems marked and repeated at the end."""
        lines: list[str] = []
        for section, found in groupby(self.findings, lambda finding: finding.section):
            lines += [section, *table(("!" if one.problem else " ", one.name, one.value) for one in found)]
        problems = [f"{finding.name}: {finding.problem}" for finding in self.findings if finding.problem]
        return "\n".join([*lines, "", *(problems or ["nothing to mend"])])

    def to_dict(self) -> dict[str, Any]:
        """The findings by section and name."""
        report: dict[str, Any] = {"exit_code": self.exit_code}
        for finding in self.findings:
            entry = {"value": finding.value} | ({"problem": finding.problem} if finding.problem else {})
            report.setdefault(finding.section, {})[finding.name] = entry
        return report


def doctor() -> Diagnosis:
    """Look at versions, the import name, devices, disk space and the model cache."""
    owners = packages_distributions().get("surgeon", ())
    return Diagnosis((*_versions(), _owner(owners), *_devices(), *_disk()))


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "surgeon", VERSION)
    yield Finding("versions", "python", platform.python_version())
    for name in [*NEEDED, *OPTIONAL]:
        try:
            yield Finding("versions", name, distribution(name).version)
        except PackageNotFoundError:
            yield Finding("versions", name, "not installed", f"pip install {name}" if name in NEEDED else "")


def _owner(found: Iterable[str]) -> Finding:
    """Who owns the import name; a checkout on the path, or an editable install, is nobody's."""
    owners = sorted(set(found))
    others = " ".join(name for name in owners if name != OURS)
    remedy = f"pip uninstall --yes {others} {OURS}, then pip install {OURS}"
    problem = f"{others} and {OURS} both install it: {remedy}" if others else ""
    where = f"{', '.join(owners) or 'a checkout'} ({Path(__file__).parents[1]})"
    return Finding("import name", "surgeon", where, problem)


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("devices", "cpu", "torch cannot be imported", f"{error}: reinstall torch")
        return
    yield Finding("devices", "cpu", f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}")
    for kind in ("cuda", "xpu"):
        backend = getattr(torch, kind)
        for index in range(backend.device_count() if backend.is_available() else 0):
            about = backend.get_device_properties(index)
            yield Finding("devices", f"{kind}:{index}", f"{about.name}, {human_bytes(about.total_memory)}")
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", "available")


def _disk() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for name, folder in (("here", Path.cwd()), ("hub cache", Path(HF_HUB_CACHE))):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        yield Finding("disk", name, f"{human_bytes(shutil.disk_usage(there).free)} free ({folder})")
