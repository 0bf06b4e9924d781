"""Memory is a promise: what anonymous memory an apply really takes, sampled from outside, against its budget."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
BUDGET = 400_000_000


def sparse(folder: Path, rows: int, columns: int) -> Path:
    """One large bf16 tensor, mostly holes, with some values in it."""
    folder.mkdir()
    size = rows * columns * 2
    entry = {"model.layers.0.w": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, size]}}
    text = json.dumps(entry).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(torch.randn(1 << 18).bfloat16().view(torch.uint8).numpy().tobytes())
        file.truncate(8 + len(text) + size)
    (folder / "config.json").write_text("{}")
    return folder


def anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is sampled in /proc")
@pytest.mark.parametrize(
    ("step", "threads"),
    [
        ("{merge: linear, models: [a, b], weight: 0.5}", 2),
        ("{merge: ties, base_model: a, models: [b], density: 0.4}", 1),
        ("{merge: slerp, base_model: a, models: [b], t: 0.5}", 2),
    ],
)
def test_anonymous_memory_stays_below_the_budget(tmp_path: Path, step: str, threads: int):
    """A tensor of 200 MB (400 MB in fp32), three times over: held at once it could not fit."""
    for name in "ab":
        sparse(tmp_path / name, 10_000, 10_000)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"surgeon: 1\nmodels: {{a: {tmp_path}/a, b: {tmp_path}/b}}\nsteps:\n  merged: {step}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "surgeon_cli", "apply", recipe, "-o", tmp_path / "out", "--memory", "400MB",
         "--threads", str(threads)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'cli'}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.01)
    _, told = process.communicate()
    if process.returncode == 2:
        assert "model.layers.0.w" in told
        assert "400.0 MB are allowed" in told
        assert not (tmp_path / "out").exists()
    else:
        assert process.returncode == 0, told
        assert 0 < peak < BUDGET
