"""Servers as processes: ready when healthy, stopped whatever happens, and clear about why they did not start."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import surgeon
from surgeon.ship.servers.engines import ENGINES, engine_named
from surgeon.ship.servers.http import ask
from surgeon.ship.servers.process import running

HEALTHY = """
import http.server, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = f"{child.pid} {os.environ['GIVEN']} {os.environ['HF_HUB_OFFLINE']}".encode()
        self.send_response(200); self.send_header("Content-Length", str(len(data))); self.end_headers()
        self.wfile.write(data)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}


def alive(pid):
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="processes are looked up in /proc")
def test_a_server_and_its_children_are_stopped_whatever_happens():
    with (
        pytest.raises(ZeroDivisionError),
        running("toy", [sys.executable, "-c", HEALTHY, "{port}"], {"GIVEN": "yes"}) as server,
    ):
        child, given, offline = ask("GET", f"{server.url}/health").text.split()
        assert (given, offline) == ("yes", "1") and alive(child)
        raise ZeroDivisionError
    assert server.process.poll() is not None
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.05)
    assert not alive(child)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="processes are looked up in /proc")
def test_a_server_is_stopped_where_surgeon_is_terminated():
    code = (
        "import sys; from surgeon.ship.servers.process import running\n"
        f"with running('toy', [sys.executable, '-c', {HEALTHY!r}, '{{port}}'], {{'GIVEN': ''}}) as server:\n"
        "    print(server.process.pid, flush=True); sys.stdin.read()"
    )
    asked = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    server = asked.stdout.readline().strip()
    assert alive(server)
    asked.terminate()
    asked.communicate(timeout=30)
    assert asked.returncode == 143 and not alive(server)


def test_a_server_that_ends_shows_the_end_of_its_output():
    command = [sys.executable, "-c", "import sys; print('no such tensor: foo'); sys.exit(3)"]
    with (
        pytest.raises(surgeon.RunError, match=r"(?s)toy ended with status 3.*no such tensor: foo"),
        running("toy", command, {}),
    ):
        raise AssertionError("it never was ready")


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_what_is_not_installed_is_refused_with_the_command_that_installs_it(engine, tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(surgeon.RefusedError, match=f"{engine.name} is not installed") as error:
        engine.require(str(bare))
    assert "pip install" in error.value.hint and "--python" in error.value.hint


def test_an_interpreter_that_is_none_and_an_unknown_server():
    with pytest.raises(surgeon.RefusedError, match="no interpreter that runs"):
        engine_named("vllm").require("/nowhere/python")
    with pytest.raises(surgeon.RefusedError, match="known: transformers, vllm, llamacpp, mlx"):
        engine_named("tgi")
