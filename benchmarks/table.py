"""The Markdown table of a benchmark's run."""

import os
import platform
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median

from memory import Measured
from workloads import Workload

MEMORY_FLOOR, PLAN_FLOOR, HELP_FLOOR = 1_000_000_000, 3.0, 0.4


@dataclass
class Runs:
    """All measurements of one workload; what has one index was run one after the other."""

    copy: list[Measured] = field(default_factory=list)
    surgeon: list[Measured] = field(default_factory=list)
    mergekit: list[Measured] = field(default_factory=list)
    beside: list[Measured] = field(default_factory=list)
    """What this workload is compared with besides."""
    budget: str = "–"


@dataclass(frozen=True)
class Small:
    """A command that is over in seconds, and how long it may take."""

    name: str
    runs: list[Measured]
    floor: float


def ratio(above: list[Measured], below: list[Measured]) -> float | None:
    """The median ratio over the pairs; None where there are none."""
    pairs = [a.seconds / b.seconds for a, b in zip(above, below, strict=False)]
    return median(pairs) if pairs else None


def demand(sign: str, floor: float, met: bool) -> str:
    """What is demanded, and whether it is met."""
    return f" ({sign} {floor:g}: {'met' if met else '**missed**'})"


def against(value: float | None, sign: str, floor: float | None) -> str:
    """A ratio, with its demand where there is one."""
    if value is None:
        return "–"
    met = floor is not None and (value <= floor if sign == "≤" else value >= floor)
    return f"{value:.2f}×" + (demand(sign, floor, met) if floor else "")


def seconds(runs: list[Measured]) -> str:
    """The median, and every run behind it."""
    if not runs:
        return "–"
    every = f" ({', '.join(f'{run.seconds:.2f}' for run in runs)})" if len(runs) > 1 else ""
    return f"{median(run.seconds for run in runs):.2f}{every}"


def peak(runs: list[Measured], floor: int | None = None) -> str:
    """The highest peak of all runs in MB, with its demand where there is one."""
    if not runs:
        return "–"
    most = max(run.peak for run in runs)
    return f"{most / 1e6:.0f}" + (demand("<", floor / 1e6, most < floor) if floor else "")


def processor() -> str:
    """The processor's name as the kernel tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def version(package: str, python: Path | None = None) -> str:
    """The installed version of a package, here or in another environment."""
    if python:
        code = f"from importlib.metadata import version; print(version({package!r}))"
        return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def heading(mergekit_python: Path | None, load: float) -> list[str]:
    """Machine, versions, date."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    here = ", ".join(f"{name} {version(name)}" for name in ("model-surgeon", "torch", "safetensors", "blake3"))
    there = ""
    if mergekit_python:
        there = "; beside it " + ", ".join(f"{name} {version(name, mergekit_python)}" for name in ("mergekit", "torch"))
    return [
        "# Results",
        "",
        "Written by `benchmarks/speed.py`; [README.md](README.md) says what is compared.",
        "",
        f"- Date: {datetime.now(UTC):%Y-%m-%d}",
        f"- Machine: {processor()}, {os.cpu_count()} cores, {memory:.0f} GiB memory, Linux {platform.release()}; "
        f"load average at the start {load:.1f}",
        f"- Versions: Python {platform.python_version()}, {here}{there}",
        "- Models: 3 × 1.1 B parameters in bfloat16, 2.2 GB each in three shards; page cache warm",
        "",
    ]


def speed_rows(results: dict[Workload, Runs]) -> list[str]:
    """Seconds and ratios of every workload."""
    rows = [
        "| workload | copy loop, s | surgeon, s | mergekit, s | surgeon / copy loop | mergekit / surgeon "
        "| surgeon / what is named |",
        "|---|---|---|---|---|---|---|",
    ]
    for workload, runs in results.items():
        floor = against(ratio(runs.surgeon, runs.copy), "≤", workload.copy_floor)
        peer = against(ratio(runs.mergekit, runs.surgeon), "≥", workload.peer_floor)
        times = " | ".join(seconds(each) for each in (runs.copy, runs.surgeon, runs.mergekit))
        beside = against(ratio(runs.surgeon, runs.beside), "≤", workload.beside_floor)
        named = f"{beside}, {workload.beside} {seconds(runs.beside)} s" if runs.beside else "–"
        rows.append(f"| {workload.name} | {times} | {floor} | {peer} | {named} |")
    note = "Seconds are medians, with every run in parentheses; ratios are medians over pairs of neighbouring runs."
    return [*rows, "", note, ""]


def memory_rows(results: dict[Workload, Runs], budget: int) -> list[str]:
    """Peak anonymous memory of every workload."""
    flag = f"`--memory {budget // 10**6}MB`"
    rows = [
        f"| peak anonymous memory, MB | copy loop | surgeon | mergekit | surgeon {flag} |",
        "|---|---|---|---|---|",
    ]
    for workload, runs in results.items():
        cells = [peak(runs.copy), peak(runs.surgeon, MEMORY_FLOOR), peak(runs.mergekit), runs.budget]
        rows.append(f"| {workload.name} | {' | '.join(cells)} |")
    return [*rows, ""]


def small_rows(small: list[Small]) -> list[str]:
    """The commands that are over in seconds."""
    if not small:
        return []
    rows = ["| command | seconds |", "|---|---|"]
    for command in small:
        met = median(run.seconds for run in command.runs) < command.floor
        rows.append(f"| {command.name} | {seconds(command.runs)}{demand('<', command.floor, met)} |")
    return [*rows, ""]


def report(
    results: dict[Workload, Runs], small: list[Small], budget: int, mergekit_python: Path | None, load: float
) -> str:
    """The whole page."""
    parts = [heading(mergekit_python, load), speed_rows(results), memory_rows(results, budget), small_rows(small)]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"
