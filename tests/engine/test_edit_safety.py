"""Same bytes of an edit, whatever the block size, memory, threads, shards or resume, nearest and compensated alike."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgeon
import surgeon.engine.run as engine_run
import surgeon.planning.memory as memory
from surgeon.artifacts.direction import bank, direction
from surgeon.recipe import dump_recipe
from surgeon.space.expr import Expr
from surgeon.space.output import Output, Recipe
from surgeon.testing.toys import random_tensors, read_checkpoint, write_checkpoint

D, FF, VOCAB, BLOCKS, EXPERTS = 260, 4201, 1301, 2, 2
GEMMA = {"model_type": "gemma2", "hidden_size": D, "num_hidden_layers": BLOCKS, "tie_word_embeddings": True}
MIXTRAL = {"model_type": "mixtral", "hidden_size": D, "num_hidden_layers": BLOCKS, "tie_word_embeddings": False}
EMBED = "model.embed_tokens.weight"


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Writers larger than a tile and of odd sizes, the norms they write through, and some that nothing touches."""
    found = {EMBED: (VOCAB, D), "model.norm.weight": (D,)}
    for block in range(BLOCKS):
        at = f"model.layers.{block}."
        found |= {f"{at}self_attn.o_proj.weight": (D, 520), f"{at}self_attn.q_proj.weight": (520, D)}
        if config is GEMMA:
            norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
            found |= {f"{at}{norm}_layernorm.weight": (D,) for norm in norms}
            found[f"{at}mlp.down_proj.weight"] = (D, FF)
        else:
            found[f"{at}mlp.experts.down_proj"] = (EXPERTS, D, FF)
    return found if config is GEMMA else found | {"lm_head.weight": (VOCAB, D)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three checkpoints with output norms, an adapter of the first, and one with fused experts; all in bf16."""
    folder = tmp_path_factory.mktemp("models")

    def make(name: str, config: dict, seed: int, shards: int = 1) -> Path:
        drawn = random_tensors(shapes(config), seed, dtype=torch.bfloat16)
        return write_checkpoint(folder / name, drawn, config, shards)

    found = {name: make(name, GEMMA, seed) for seed, name in enumerate("abc")}
    found |= {"sharded": make("sharded", GEMMA, 0, 4), "experts": make("experts", MIXTRAL, 5)}
    found["adapter"] = folder / "adapter"
    found["adapter"].mkdir()
    lora = {f"base_model.model.model.layers.1.mlp.down_proj.lora_{one}.weight": torch.randn(shape) / 50
            for one, shape in (("A", (3, FF)), ("B", (D, 3)))}  # fmt: skip
    save_file(lora, found["adapter"] / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["down_proj"]}
    (found["adapter"] / "adapter_config.json").write_text(json.dumps(config))
    return found


def rows(k: int, seed: int) -> torch.Tensor:
    return torch.randn(k, D, generator=torch.Generator().manual_seed(seed))


def recipes(models: dict[str, Path], base: str = "a") -> dict[str, Expr]:
    """One expression a kind of edit."""
    a, b, c = (surgeon.open(models[name]) for name in (base, "b", "c"))
    ties = surgeon.merge("ties", [b, c], base_model=a, weight=[0.6, 0.4], density=[0.3, 0.55])
    points = ("embed", *(f"block.{i}{mid}" for i in range(BLOCKS) for mid in (".mid", "")))
    own = bank({point: rows(1, seed) for seed, point in enumerate(points)})
    whole = direction(rows(3, 9), at="block.0")
    return {
        "everywhere, after a merge and an adapter": surgeon.edit(
            "ablate", ties + 0.5 * surgeon.open(models["adapter"]), directions=whole
        ),
        "two directions, their own, on some writers": surgeon.edit(
            "ablate", a, directions=[own, whole], writers=["attention", "mlp"], layers=(1, 2)
        ),
        "fused experts": surgeon.edit("ablate", surgeon.open(models["experts"]), directions=own, at="own.mid"),
    }


KINDS = ("everywhere, after a merge and an adapter", "two directions, their own, on some writers", "fused experts")
ROUNDINGS = ("nearest", "compensated")
CONDITIONS = {
    "small blocks": {"block": "64kB"},
    "odd blocks, two threads": {"block": 100_001 * 4, "threads": 2},
    "large blocks, four threads, nothing held": {"block": "64MB", "threads": 4},
}


def digest(out: Path) -> str:
    """One sha256 over all weight files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(out.glob("*.safetensors")))).hexdigest()


def contents(out: Path) -> dict[str, bytes]:
    held = read_checkpoint(out)
    return {name: value.contiguous().view(torch.uint8).numpy().tobytes() for name, value in held.items()}


def written(expr: Expr, out: Path, rounding: str = "nearest", shard_size: str | None = "1TB", **given) -> Path:
    surgeon.apply(Recipe(expr, Output(rounding=rounding)), out, shard_size=shard_size, **given)
    return out


@pytest.fixture(scope="module")
def reference(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """A kind of edit in one thread and blocks of the usual size, each made once."""
    folder, made = tmp_path_factory.mktemp("reference"), {}

    def of(kind: str, rounding: str) -> Path:
        if (kind, rounding) not in made:
            made[kind, rounding] = written(recipes(models)[kind], folder / f"{len(made)}", rounding, threads=1)
        return made[kind, rounding]

    return of


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_memory_and_threads_change_no_byte(
    models, reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rounding: str, condition: str
):
    expr = recipes(models)[kind]
    usual = surgeon.plan(Recipe(expr, Output(rounding=rounding)))
    assert any(target.resident for target in usual.targets)
    assert any(target.promise for target in usual.targets)
    if "nothing held" in condition:
        monkeypatch.setattr(memory, "USUAL_BUDGET", 0)
        assert not any(target.resident for target in surgeon.plan(usual.recipe).targets)
    written(expr, tmp_path / "out", rounding, **CONDITIONS[condition])
    assert digest(tmp_path / "out") == digest(reference(kind, rounding))


@pytest.mark.parametrize("kind", KINDS)
def test_the_roundings_differ_and_only_where_something_is_edited(models, reference, kind: str):
    """Else the two halves of each test here would be one."""
    nearest, compensated = (contents(reference(kind, rounding)) for rounding in ROUNDINGS)
    moved = {name for name in nearest if nearest[name] != compensated[name]}
    plan = surgeon.plan(recipes(models)[kind])
    assert moved == {target.name for target in plan.targets if target.promise is not None}


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("kind", KINDS[:2])
def test_shards_change_no_tensor(models, reference, tmp_path: Path, kind: str, rounding: str):
    four = written(recipes(models, base="sharded")[kind], tmp_path / "four", rounding, None, threads=2)
    small = written(recipes(models)[kind], tmp_path / "small", rounding, "300kB")
    assert len(list(four.glob("*.safetensors"))) == 4
    assert len(list(small.glob("*.safetensors"))) > 4
    assert contents(four) == contents(small) == contents(reference(kind, rounding))


@pytest.mark.parametrize("finished", [0, 1, 3, -1])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_resumed_wherever_it_was_interrupted_it_ends_in_the_same_bytes(
    models, reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounding: str, finished: int
):
    """Also the receipt: what is left of R in a tensor that was finished before is in the journal."""
    expr, out = recipes(models)[KINDS[0]], tmp_path / "out"
    monkeypatch.setattr(engine_run, "_FLUSH_SECONDS", 0.01)
    work, seen, again = engine_run.Worker.run, [], []
    finished %= len(surgeon.plan(expr).targets)

    def interrupt(worker, target, reader):
        if len(seen) == finished:
            raise KeyboardInterrupt
        seen.append(target.name)
        return work(worker, target, reader)

    def note(worker, target, reader):
        again.append(target.name)
        return work(worker, target, reader)

    monkeypatch.setattr(engine_run.Worker, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        written(expr, out, rounding, threads=1)
    assert not out.exists()
    monkeypatch.setattr(engine_run.Worker, "run", note)
    written(expr, out, rounding, threads=2, resume=True)
    assert again
    assert not set(again) & set(seen)
    expected = reference(KINDS[0], rounding)
    assert digest(out) == digest(expected)
    proven, wanted = (json.loads((folder / "surgeon.json").read_text())["invariants"] for folder in (out, expected))
    assert proven == wanted
    assert all(one["after"] < 0.05 * one["before"] for one in proven)
    assert surgeon.verify(out).exit_code == 0


_CHILD = """
import sys, surgeon
for recipe, out in zip(sys.argv[1::2], sys.argv[2::2]):
    surgeon.apply(recipe, out, shard_size="1TB")
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_openmp_threads_change_no_byte(models, reference, tmp_path: Path, threads: str):
    """By the receipts' own recipes, so that the directions come from files."""
    folders = {rounding: reference(KINDS[0], rounding) for rounding in ROUNDINGS}
    given = [str(path) for r, made in folders.items() for path in (made / "surgeon" / "recipe.yaml", tmp_path / r)]
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", _CHILD, *given], env=environment, check=True, capture_output=True)
    assert {r: digest(tmp_path / r) for r in ROUNDINGS} == {r: digest(made) for r, made in folders.items()}


def test_at_strength_zero_every_byte_is_the_bases(models, tmp_path: Path):
    """What the untied head holds is the embedding; nothing is claimed."""
    base = surgeon.open(models["a"])
    nothing = surgeon.edit("ablate", base, directions=direction(rows(2, 3), at="embed"), strength=0)
    out = written(nothing, tmp_path / "out")
    before, after = contents(models["a"]), contents(out)
    assert after.pop("lm_head.weight") == before[EMBED]
    assert after == before


def test_a_direction_file_that_changes_is_not_resumed_over(models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, out = tmp_path / "d.safetensors", tmp_path / "out"
    direction(rows(1, 3), at="block.0", name="d").save(file)
    expr = surgeon.edit("ablate", surgeon.open(models["a"]), directions=file)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(expr, schema=False))
    with monkeypatch.context() as patch:
        patch.setattr("surgeon.engine.workspace.Workspace.commit", lambda self: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            surgeon.apply(recipe, out)
    direction(rows(1, 4), at="block.0", name="d").save(file)
    with pytest.raises(surgeon.OutputError, match="another recipe, version or inputs"):
        surgeon.apply(recipe, out, resume=True)
    surgeon.apply(recipe, out)
    surgeon.apply(recipe, tmp_path / "expected")
    assert digest(out) == digest(tmp_path / "expected")
    held = load_file(out / "surgeon" / "d.safetensors")
    assert torch.equal(held["block.0"], rows(1, 4))
