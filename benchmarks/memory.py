"""Run a command and sample the anonymous memory of it and all its children.

    python benchmarks/memory.py COMMAND [ARGUMENT ...]

Anonymous memory (RssAnon) is what a program takes for itself. Pages of the files it reads are the system's, and not
counted.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import BinaryIO

INTERVAL = 0.02


@dataclass(frozen=True)
class Measured:
    """What one run of a command took."""

    seconds: float
    peak: int
    """Highest sum of RssAnon over the process tree, in bytes."""
    code: int
    """The exit code."""


def children(pid: int) -> list[int]:
    """The direct children of a process, whichever of its threads started them; none where it has just ended."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def anonymous(pid: int) -> int:
    """RssAnon in bytes of a process and all below it; 0 where it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))
    return own + sum(anonymous(child) for child in children(pid))


class Sampler(Thread):
    """Samples a process tree until stopped and keeps the peak."""

    def __init__(self, pid: int) -> None:
        """Watch the tree below `pid`; nothing is read before `start`."""
        super().__init__(daemon=True)
        self.pid = pid
        self.peak = 0
        self.over = Event()

    def run(self) -> None:
        """Sample every 20 ms."""
        while not self.over.wait(INTERVAL):
            self.peak = max(self.peak, anonymous(self.pid))

    def stop(self) -> int:
        """End the sampling and return the peak."""
        self.over.set()
        self.join()
        return self.peak


def watch(command: list[str], output: BinaryIO | None = None) -> Measured:
    """Run a command as its own process; wall time from start to exit."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=output, stderr=output) as process:
        sampler = Sampler(process.pid)
        sampler.start()
        code = process.wait()
        seconds = time.perf_counter() - started
        return Measured(seconds, sampler.stop(), code)


def measure(command: list[str], log: Path) -> Measured:
    """`watch` a command whose output is appended to `log`, below the command itself."""
    with open(log, "ab") as output:
        output.write(f"$ {' '.join(command)}\n".encode())
        output.flush()
        return watch(command, output)


if __name__ == "__main__":
    result = watch(sys.argv[1:])
    print(f"{result.seconds:.2f} s, peak anonymous memory {result.peak / 1e6:.0f} MB, exit code {result.code}")
