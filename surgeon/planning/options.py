"""How a plan is to be run: device, memory, threads, block size."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

#: What is aimed at when no budget is given, and what a whole-tensor kernel may then exceed up to the free memory.
USUAL_BUDGET = 1_000_000_000


@dataclass(frozen=True)
class Options:
    """`memory` is a promise in bytes of anonymous resident memory; `block` is in bytes of float32.

    `any_model` lets directions be used on another model than they were measured on.
    """

    device: str = "auto"
    memory: int | None = None
    threads: int | None = None
    block: int = 1 << 21
    allow_nan: bool = False
    any_model: bool = False

    @property
    def workers(self) -> int:
        """Threads that read, compute and write."""
        return self.threads or min(os.cpu_count() or 1, 8)

    @property
    def block_elements(self) -> int:
        """Elements of one block."""
        return max(self.block // 4, 1)


def resident_now() -> int:
    """Anonymous resident bytes of this process, imports included; a usual figure where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 250_000_000


def free_memory() -> int:
    """Bytes the system could still give; a large figure where it does not tell."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 62
