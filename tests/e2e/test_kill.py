"""kill -9 at 200 random moments over multi-shard applies: never half an OUT, always the same bytes in the end."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.artifacts.direction import direction
from surgeon.testing.toys import random_tensors, write_checkpoint

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/data/tiny"
KILLS = int(os.environ.get("SURGEON_KILLS", "200"))

#: Applies that fork from one process with everything imported, so that the kill meets the work, not the imports. A line
#: of input is an OUT, whether to overwrite, and after how many seconds to kill; a line of output the exit code.
SERVER = """
import os, sys, time
import surgeon, surgeon.engine.build, surgeon.planning.plan, surgeon.planning.memory, surgeon.recipe
import surgeon.verbs.stages, surgeon.directions.fit, surgeon.runtime.load, transformers
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


SIZES = (
    (f"model.layers.{i}.{part}.weight", (300, 401)) for i in range(11) for part in ("self_attn.o_proj", "mlp.down_proj")
)
SHAPES = dict(SIZES) | {"model.embed_tokens.weight": (400, 300), "model.norm.weight": (300,)}
CONFIG = {"model_type": "llama", "hidden_size": 300, "num_hidden_layers": 11, "tie_word_embeddings": True}
TIES = "  merged: {merge: ties, base_model: a, models: [b, c], density: 0.5}\n"
MODELS = "surgeon: 1\nmodels: {a: ./a, b: ./b, c: ./c}\n"
EDIT = "  edited: {edit: ablate, of: merged, directions: [d]}\n"
FIT = "{fit: mean_difference, model: merged, positive: ./p.jsonl, negative: ./n.jsonl, at: block.1}"
#: What is killed: a merge, a merge that is edited (each tensor read three times, the head new), and one that is made
#: in fp32 first, to be measured. With each, its share of the kills.
RECIPES = {
    "merged": (f"{MODELS}steps:\n{TIES}", 0.2),
    "edited": (
        f"{MODELS}directions: {{d: ./d.safetensors}}\nsteps:\n{TIES}{EDIT}"
        "output: {dtype: bfloat16, rounding: compensated}\n",
        0.25,
    ),
    "measured": (
        f"surgeon: 1\nmodels: {{a: {TINY / 'model'}, b: {TINY / 'adapters/list'}}}\ndirections: {{d: {FIT}}}\n"
        f"steps:\n  merged: {{combine: a + 0.5*b}}\n{EDIT}output: {{shard_size: 100kB}}\n",
        0.05,
    ),
}


def write_inputs(folder: Path) -> None:
    """Three models, a direction, and contrast sets."""
    for seed, name in enumerate("abc"):
        write_checkpoint(folder / name, random_tensors(SHAPES, seed), CONFIG, shards=5)
    direction(torch.ones(300), at="block.1", name="d").save(folder / "d.safetensors")
    for name, text in (("p.jsonl", "Repeat the word {}."), ("n.jsonl", "Say {} to me, please")):
        examples = [{"prompt": text.format(word)} for word in "tree sun moon house car river".split()]
        (folder / name).write_text("".join(json.dumps(example) + "\n" for example in examples))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", RECIPES)
def test_killed_at_random_moments(tmp_path: Path, kind: str, overwrite: bool):
    write_inputs(tmp_path)
    text, share = RECIPES[kind]
    kills = round(KILLS * share)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    old = None
    out, beside = tmp_path / "out", (tmp_path / ".out.surgeon", tmp_path / ".out.stages.surgeon")
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

    def apply(after: float | None, out: Path = out) -> int:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(f"{out} {int(overwrite)} {'never' if after is None else after}\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    try:
        assert apply(None, tmp_path / "expected") == 0
        whole = state(tmp_path / "expected")
        for _ in range(kills):
            code = apply(rng.uniform(0, longest))
            killed += code == -9
            assert state(out) in (old, whole)
            started = time.monotonic()
            done = out.exists() and state(out) == whole
            if done and not overwrite and any(path.exists() for path in beside):
                # Killed between rename and tidying up: the next command tidies up, and refuses because OUT stands.
                assert apply(None) == 1
            if not done or overwrite:
                assert apply(None) == 0
                longest = max(0.3, 1.1 * (time.monotonic() - started))
            assert state(out) == whole
            assert not any(path.exists() for path in beside)
            if overwrite:
                surgeon.apply(surgeon.open(tmp_path / "a"), out, overwrite=True)
                assert state(out) == old
            else:
                shutil.rmtree(out)
    finally:
        server.stdin.close()
        server.wait(timeout=60)
        server.stdout.close()
    assert killed > kills // 4
