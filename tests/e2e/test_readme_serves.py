"""The README's section "Serve it": every block is run as it stands, beside `base`, `out` and `recipe.yaml`."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.artifacts.direction import direction
from surgeon.ship.servers.engines import engine_named

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
SERVERS = {"transformers": "transformers", "vLLM": "vllm", "llama.cpp": "llamacpp", "MLX": "mlx"}
RECIPE = """\
surgeon: 1
models: {base: ./base}
directions: {removed: ./direction.safetensors}
steps: {edited: {edit: ablate, of: base, directions: [removed], writers: [attention, mlp], layers: 10..20}}
"""
LLAMA = """\
#!/bin/sh
exec {python} {server} "$@"
"""


def blocks() -> dict[str, str]:
    """Each server's block, by the word its paragraph begins with."""
    section = (ROOT / "README.md").read_text().split("## Serve it")[1].split("\n## ")[0]
    return dict(re.findall(r"^(\S+) \([^\n]*:\n\n```sh\n(.*?)```", section, re.M | re.S))


def test_every_server_has_a_block():
    assert set(blocks()) == set(SERVERS)


@pytest.fixture(scope="session")
def place(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the section speaks of."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "base").symlink_to(smollm2)
    rows = direction(torch.randn(1, 576, generator=torch.Generator().manual_seed(5)), at="block.14")
    rows.save(folder / "direction.safetensors")
    (folder / "recipe.yaml").write_text(RECIPE)
    surgeon.apply(folder / "recipe.yaml", folder / "out")
    return folder


def commands(folder: Path, python: str) -> str:
    """A folder of the commands that a block may use and this machine may not have: surgeon, and llama.cpp's server."""
    held = folder / "bin"
    held.mkdir(exist_ok=True)
    server = ROOT / "surgeon" / "ship" / "servers" / "llamacpp_server.py"
    for name, text in (
        ("llama-server", LLAMA.format(python=python, server=server)),
        ("surgeon", f'#!/bin/sh\nexec {sys.executable} -m surgeon_cli "$@"\n'),
    ):
        (held / name).write_text(text)
        (held / name).chmod(stat.S_IRWXU)
    return str(held)


@pytest.mark.parametrize("name", SERVERS)
def test_the_block_is_served(name: str, place: Path):
    variable = {"vLLM": "SURGEON_VLLM_PYTHON", "llama.cpp": "SURGEON_LLAMACPP_PYTHON"}.get(name, "SURGEON_E2E_PYTHON")
    python = os.environ.get(variable) or sys.executable
    engine_named(SERVERS[name]).require(python)
    before = [commands(place, python), str(Path(python).parent), str(Path(sys.executable).parent)]
    environment = os.environ | {"PATH": os.pathsep.join([*before, os.environ["PATH"]]), "HF_HUB_OFFLINE": "1"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1"} if name == "vLLM" else {}
    assert shutil.which("curl")
    # What a block leaves running ends with its shell, as when a terminal is closed.
    script = f"trap 'kill $(jobs -p) 2>/dev/null || :' EXIT\nset -e\n{blocks()[name]}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
    assert '"text"' in done.stdout, f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
