"""A server as a process of its own on 127.0.0.1: started on a free port, waited for, and stopped whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from surgeon.errors import RunError
from surgeon.ship.servers.http import ask

_START_SECONDS = 300.0
_STOP_SECONDS = 20.0
_SHOWN = 3000

#: Nothing is fetched; one thread: on few cores, idle threads that spin slow a small model down.
_SETTINGS = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Running:
    """A server that runs: what it is called, its address, its process and the file its output goes to."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def failure(self, what: str) -> RunError:
        """The error that says what happened and shows the end of the server's output."""
        tail = self.log.read_text(errors="replace")[-_SHOWN:].strip()
        return RunError(f"{self.name} {what}\n--- the end of its output ---\n{tail}\n---", hint="its output says why")


@contextmanager
def running(name: str, command: Sequence[str], settings: Mapping[str, str]) -> Iterator[Running]:
    """Run a command, `{port}` in it a free port, until the block ends; ready once /health answers 200."""
    port = _free_port()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | _SETTINGS | dict(settings)
    with tempfile.TemporaryDirectory(prefix="surgeon-serve-") as scratch:
        log = Path(scratch, "output.txt")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [part.replace("{port}", str(port)) for part in command], stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, cwd=scratch, env=environment, start_new_session=True,
            )  # fmt: skip
        try:
            with _terminated():
                server = Running(name, f"http://127.0.0.1:{port}", process, log)
                _wait(server)
                yield server
        finally:
            _stop(process)


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, so that the server is stopped first. Signals reach the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _wait(server: Running) -> None:
    """Wait until it is healthy; 503 is what some say while they load, and others once loading failed."""
    deadline = time.monotonic() + _START_SECONDS
    while (status := _health(server.url)) != 200:
        if server.process.poll() is not None:
            raise server.failure(f"ended with status {server.process.returncode} before it was ready")
        if time.monotonic() > deadline:
            said = f", its health check says {status}" if status else ""
            raise server.failure(f"was not ready after {_START_SECONDS:.0f} s{said}")
        time.sleep(0.5)


def _health(url: str) -> int | None:
    """The status of the health check, None while nothing listens."""
    try:
        return ask("GET", f"{url}/health", timeout=5).status
    except RunError:
        return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and every process it started: they share its session."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(timeout=_STOP_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
