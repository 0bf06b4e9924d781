"""kill -9 at 200 random moments over a multi-shard apply: never half an OUT, always the same bytes in the end."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import surgeon
from surgeon.testing.toys import random_tensors, write_checkpoint

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("SURGEON_KILLS", "200"))

#: Applies that fork from one process with everything imported, so that the kill meets the work, not the imports. A line
#: of input is an OUT, whether to overwrite, and after how many seconds to kill; a line of output the exit code.
SERVER = """
import os, sys, time
import surgeon, surgeon.engine.build, surgeon.planning.plan, surgeon.planning.memory, surgeon.recipe
import huggingface_hub, torch
from huggingface_hub import ModelCard, ModelCardData
torch.set_num_threads(1)
recipe = sys.argv[1]
for line in sys.stdin:
    out, overwrite, after = line.split()
    child = os.fork()
    if not child:
        try:
            surgeon.apply(recipe, out, threads=2, overwrite=overwrite == "1")
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if after != "never":
        time.sleep(float(after))
        os.kill(child, 9)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def state(out: Path) -> str | None:
    """One digest of all weight files; None where there is no OUT. Any other file missing is an error."""
    if not out.exists():
        return None
    hasher = hashlib.sha256()
    for name in ("surgeon.json", "config.json", "README.md", "surgeon/recipe.yaml", "model.safetensors.index.json"):
        assert (out / name).stat().st_size
    for shard in sorted(out.glob("*.safetensors")):
        hasher.update(shard.name.encode() + shard.read_bytes())
    return hasher.hexdigest()


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_random_moments(tmp_path: Path, overwrite: bool):
    shapes = {f"model.layers.{i}.w": (300, 401) for i in range(24)}
    for seed, name in enumerate("abc"):
        write_checkpoint(tmp_path / name, random_tensors(shapes, seed), shards=5)
    recipe = tmp_path / "recipe.yaml"
    listed = "".join(f"  {name}: ./{name}\n" for name in "abc")
    step = "steps:\n  merged: {merge: ties, base_model: a, models: [b, c], density: 0.5}\n"
    recipe.write_text(f"surgeon: 1\nmodels:\n{listed}{step}")
    surgeon.apply(recipe, tmp_path / "expected", threads=1)
    whole = state(tmp_path / "expected")
    old = None
    out = tmp_path / "out"
    if overwrite:
        surgeon.apply(surgeon.open(tmp_path / "a"), out)
        old = state(out)
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, recipe], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    rng, longest, killed = random.Random(7), 1.0, 0

    def apply(after: float | None) -> int:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(f"{out} {int(overwrite)} {'never' if after is None else after}\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    try:
        for _ in range(KILLS // 2):
            code = apply(rng.uniform(0, longest))
            killed += code == -9
            assert state(out) in (old, whole)
            started = time.monotonic()
            done = out.exists() and state(out) == whole
            if done and not overwrite and (tmp_path / ".out.surgeon").exists():
                # Killed between rename and tidying up: the next command tidies up, and refuses because OUT stands.
                assert apply(None) == 1
            if not done or overwrite:
                assert apply(None) == 0
                longest = max(0.3, 1.1 * (time.monotonic() - started))
            assert state(out) == whole
            assert not (tmp_path / ".out.surgeon").exists()
            if overwrite:
                surgeon.apply(surgeon.open(tmp_path / "a"), out, overwrite=True)
                assert state(out) == old
            else:
                shutil.rmtree(out)
    finally:
        server.stdin.close()
        server.wait(timeout=60)
        server.stdout.close()
    assert killed > KILLS // 8
