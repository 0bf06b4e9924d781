"""Same bytes from the same recipe, whatever the block size, memory, threads, shards or resume; and the base's bytes
where nothing changes."""

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import surgeon
import surgeon.space.registry as registry
from surgeon.engine.run import run
from surgeon.planning.options import Options
from surgeon.planning.plan import build as build_plan
from surgeon.space.expr import Expr
from surgeon.space.method import merge_method
from surgeon.space.noise import Noise
from surgeon.space.numeric import column, total
from surgeon.space.output import Output, Recipe
from surgeon.space.parameters import Models, PerModel, TaskVectors, each
from surgeon.space.schedule import Layers
from surgeon.testing.toys import random_tensors, read_checkpoint, write_checkpoint

#: One tensor is larger than a span of the tie search (1 << 20) and than most blocks; the others have odd shapes.
SHAPES = {
    "model.embed_tokens.weight": (1031, 1033),
    "model.layers.0.mlp.down_proj.weight": (33, 65),
    "model.layers.0.conv.weight": (7, 5, 3),
    "model.layers.0.norm.weight": (129,),
    "model.layers.1.mlp.down_proj.weight": (33, 65),
    "model.layers.1.scale": (),
    "model.layers.1.empty": (0, 4),
    "model.norm.weight": (4097,),
    "model.layers.0.untouched.weight": (64, 64),
}
DTYPES = {"model.layers.0.mlp.down_proj.weight": torch.float32, "model.layers.0.conv.weight": torch.float16,
          "model.layers.1.mlp.down_proj.weight": torch.float64, "model.norm.weight": torch.float32}  # fmt: skip


@merge_method(blocks="elements", ranges={"density": "(0, 1]"})
def thinned(
    task_vectors: TaskVectors,
    noise: Noise,
    weight: PerModel[float] = each(1.0),  # noqa: B008
    density: PerModel[float] = each(1.0),  # noqa: B008
) -> Tensor:
    """Keep entries at random, scaled up (drop and rescale)."""
    kept = (noise.uniform(task_vectors) < column(density, task_vectors)).to(task_vectors.dtype)
    return total(kept * task_vectors * column([w / d for w, d in zip(weight, density, strict=True)], task_vectors))


@merge_method(blocks="rows")
def row_normed(models: Models, weight: PerModel[float] = each(1.0)) -> Tensor:  # noqa: B008
    """Average, with each row scaled to the mean norm of its rows in the models."""
    mixed = (column(weight, models) * models).sum(0) / sum(weight)
    if models.ndim < 3:
        return mixed
    norms = torch.linalg.vector_norm(models, dim=-1, keepdim=True).mean(0)
    return mixed * norms / (torch.linalg.vector_norm(mixed, dim=-1, keepdim=True) + 1e-12)


@merge_method
def spectral(models: Models) -> Tensor:
    """Of a matrix, the mean behind the first model's singular directions."""
    mixed = models.mean(0)
    if mixed.ndim != 2 or not mixed.numel():
        return mixed
    u, _, _ = torch.linalg.svd(models[0], full_matrices=False)
    return u @ (u.T @ mixed)


@pytest.fixture(autouse=True, scope="module")
def registered():
    """The methods above, registered as a package's would be."""
    names = {method.name: method for method in (thinned, row_normed, spectral)}
    found = {**registry.merge_methods(), **names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "merge_methods", lambda: found)
        yield


def tensors(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    """bf16 unless said otherwise, an integer tensor, and `…untouched.weight` the same whatever the seed."""
    drawn = random_tensors(shapes, seed)
    drawn |= random_tensors({"model.layers.0.untouched.weight": shapes["model.layers.0.untouched.weight"]}, 99)
    drawn["model.layers.1.scale"] = drawn["model.layers.1.scale"].abs() + 1
    cast = {name: value.to(DTYPES.get(name, torch.bfloat16)) for name, value in drawn.items()}
    return cast | {"model.positions": torch.arange(77)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three checkpoints in mixed dtypes, the base once more in five shards, and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    found = {name: write_checkpoint(folder / name, tensors(seed)) for seed, name in enumerate("abc")}
    other = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in tensors(2).items()}
    found["c"] = write_checkpoint(folder / "c32", other)
    found["sharded"] = write_checkpoint(folder / "sharded", tensors(0), shards=5)
    found["adapter"] = adapter(folder / "adapter")
    return found


def adapter(folder: Path) -> Path:
    folder.mkdir()
    drawn = {}
    for name in ("model.embed_tokens", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"):
        rows, columns = SHAPES[f"{name}.weight"]
        generator = torch.Generator().manual_seed(rows)
        drawn[f"base_model.model.{name}.lora_A.weight"] = torch.randn(3, columns, generator=generator)
        drawn[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, 3, generator=generator)
    save_file(drawn, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["embed_tokens", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def recipes(models: Mapping[str, Path], base: str = "a") -> dict[str, Expr]:
    """One expression a kind of work."""
    a, b, c = (surgeon.open(models[name]) for name in (base, "b", "c"))
    lora = surgeon.open(models["adapter"])
    ties = surgeon.merge("ties", [b, c], base_model=a, weight=[0.6, 0.4], density=[0.3, 0.55])
    return {
        "linear": surgeon.merge("linear", [a, b, c], weight=[0.5, 0.3, 0.2]),
        "combination": a + 0.6 * (b - a) - Layers((Fraction(1, 10), Fraction(2, 5))) * (c - a),
        "ties": ties,
        "ties over the model": surgeon.merge("ties", [b, c], base_model=a, density=[0.2, 0.7], over="model"),
        "slerp": surgeon.merge("slerp", [b], base_model=a, t=0.3),
        "adapter": a + 0.5 * lora,
        "ties, then an adapter, then slerp": surgeon.merge("slerp", [c], base_model=ties + 0.5 * lora, t=0.4),
        "noise": surgeon.merge("thinned", [b, c], base_model=a, density=0.5, seed=3),
        "rows": surgeon.merge("row_normed", [a, b, c]),
        "whole": surgeon.merge("spectral", [a, b]),
    }


KINDS = (
    "linear", "combination", "ties", "ties over the model", "slerp", "adapter", "ties, then an adapter, then slerp",
    "noise", "rows", "whole",
)  # fmt: skip
CONDITIONS = {
    "small blocks": {"block": "64kB"},
    "large blocks, two threads": {"block": "64MB", "threads": 2},
    "four threads, little memory": {"threads": 4, "memory": "STREAMED"},
    "odd blocks": {"block": 100_001 * 4, "threads": 2},
}


def digest(out: Path) -> str:
    """One sha256 over all weight files."""
    hasher = hashlib.sha256()
    for file in sorted(out.glob("*.safetensors")):
        hasher.update(file.read_bytes())
    return hasher.hexdigest()


def contents(out: Path) -> dict[str, bytes]:
    return {name: value.view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
            for name, value in read_checkpoint(out).items()}  # fmt: skip


@functools.cache
def _reference(kind: str, folder: Path, a: Path, b: Path, c: Path, lora: Path) -> Path:
    expr = recipes({"a": a, "b": b, "c": c, "adapter": lora})[kind]
    surgeon.apply(expr, folder / kind, threads=1, shard_size="1TB")
    return folder / kind


@pytest.fixture
def reference(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """The output of a kind of work in one thread and blocks of the usual size, made once."""

    def of(kind: str) -> Path:
        paths = [models[name] for name in ("a", "b", "c", "adapter")]
        return _reference(kind, paths[0].parent / "reference", *paths)

    return of


def streamed(settings: dict, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Memory so that no tensor is held: the budget is what the largest needs streamed."""
    if settings.get("memory") != "STREAMED":
        return settings
    import surgeon.planning.memory as memory

    monkeypatch.setattr(memory, "USUAL_BUDGET", 0)
    return {key: value for key, value in settings.items() if key != "memory"}


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_memory_and_threads_change_no_byte(
    models: dict[str, Path], reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, condition: str
):
    settings = streamed(CONDITIONS[condition], monkeypatch)
    expr = recipes(models)[kind]
    if "memory" in condition:
        plan = surgeon.plan(expr, **settings)
        assert not any(target.resident for target in plan.targets)
    surgeon.apply(expr, tmp_path / "out", shard_size="1TB", **settings)
    assert digest(tmp_path / "out") == digest(reference(kind))


def test_the_reference_holds_tensors_that_need_it(models: dict[str, Path]):
    """Else streaming above would prove nothing."""
    targets = surgeon.plan(recipes(models)["ties"]).targets
    assert any(target.resident for target in targets)


@pytest.mark.parametrize("kind", ["linear", "ties", "ties over the model", "adapter", "noise"])
def test_shards_change_no_tensor(models: dict[str, Path], reference, tmp_path: Path, kind: str):
    surgeon.apply(recipes(models, base="sharded")[kind], tmp_path / "five", threads=2)
    surgeon.apply(recipes(models)[kind], tmp_path / "small", shard_size="8kB")
    assert len(list((tmp_path / "five").glob("*.safetensors"))) == 5
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 4
    assert contents(tmp_path / "five") == contents(tmp_path / "small") == contents(reference(kind))


@pytest.mark.parametrize("kind", ["ties", "ties over the model", "slerp", "adapter"])
def test_a_resumed_build_ends_in_the_same_bytes(
    models: dict[str, Path], reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    import surgeon.engine.run as engine_run

    expr, out = recipes(models)[kind], tmp_path / "out"
    monkeypatch.setattr(engine_run, "_FLUSH_SECONDS", 0.01)
    seen = []

    def interrupt(worker, target, reader):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(target.name)
        return work(worker, target, reader)

    with monkeypatch.context() as patch:
        work = engine_run.Worker.run
        patch.setattr(engine_run.Worker, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            surgeon.apply(expr, out, threads=1, shard_size="1TB")
    assert not out.exists()
    again = []

    def note(worker, target, reader):
        again.append(target.name)
        return work(worker, target, reader)

    monkeypatch.setattr(engine_run.Worker, "run", note)
    surgeon.apply(expr, out, threads=2, shard_size="1TB", resume=True)
    assert again
    assert not set(again) & set(seen)
    assert digest(out) == digest(reference(kind))


_CHILD = """
import sys, torch, surgeon
kind, out, *folders = sys.argv[1:]
a, b, c, lora = map(surgeon.open, folders)
ties = surgeon.merge("ties", [b, c], base_model=a, weight=[0.6, 0.4], density=[0.3, 0.55])
expr = {"ties": ties, "adapter": a + 0.5 * lora}[kind]
surgeon.apply(expr, out, shard_size="1TB")
print(torch.get_num_threads())
"""


@pytest.mark.parametrize("kind", ["ties", "adapter"])
@pytest.mark.parametrize("threads", ["1", "2"])
def test_openmp_threads_change_no_byte(models: dict[str, Path], reference, tmp_path: Path, kind: str, threads: str):
    paths = [str(models[name]) for name in ("a", "b", "c", "adapter")]
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", _CHILD, kind, str(tmp_path / "out"), *paths]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert digest(tmp_path / "out") == digest(reference(kind))


def test_untouched_tensors_and_integers_are_the_bases_bytes(models: dict[str, Path], reference):
    base = contents(models["a"])
    for kind in KINDS:
        assert contents(reference(kind))["model.positions"] == base["model.positions"]
    adapted, ties = contents(reference("adapter")), contents(reference("ties"))
    touched = {"model.embed_tokens.weight", *(f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1))}
    assert {name for name, data in adapted.items() if data != base[name]} == touched
    assert ties["model.layers.0.untouched.weight"] == base["model.layers.0.untouched.weight"]
    assert ties["model.embed_tokens.weight"] != base["model.embed_tokens.weight"]


def equal_or_zero(models: Mapping[str, Path], twins: list[Path]) -> dict[str, Expr]:
    """Recipes whose result is the base: equal inputs, or nothing of the others."""
    a, b, c, (d, e) = *(surgeon.open(models[name]) for name in "abc"), map(surgeon.open, twins)
    lora = surgeon.open(models["adapter"])
    return {
        "linear of equals": surgeon.merge("linear", [a, d, e], weight=[0.4, 0.35, 0.25]),
        "linear of zeros": surgeon.merge("linear", [a, b, c], weight=[1, 0, 0]),
        "combination of equals": 0.4 * a + 0.35 * d + 0.25 * e,
        "combination of zeros": a + 0 * (b - a) + 0 * lora,
        "combination of scheduled zeros": a + Layers((Fraction(0), Fraction(0))) * (b - a),
        "ties of equals": surgeon.merge("ties", [d, e], base_model=a, weight=[0.5, 0.7], density=0.3),
        "ties of zeros": surgeon.merge("ties", [b, c], base_model=a, weight=0, normalize=False),
        "task arithmetic of equals": surgeon.merge("task_arithmetic", [d, e], base_model=a, weight=0.7),
        "task arithmetic of zeros": surgeon.merge("task_arithmetic", [b, c], base_model=a, weight=0),
        "slerp of equals": surgeon.merge("slerp", [d], base_model=a, t=0.37),
        "slerp of zero": surgeon.merge("slerp", [b], base_model=a, t=0),
        "noise of equals": surgeon.merge("thinned", [d, e], base_model=a, density=0.5),
    }


@pytest.fixture(scope="module")
def twins(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The base twice more, in other files: equal bytes, but not known to be so before they are read."""
    folder = tmp_path_factory.mktemp("twins")
    return [write_checkpoint(folder / name, tensors(0), shards=shards) for name, shards in (("d", 1), ("e", 2))]


@pytest.mark.parametrize(
    "kind",
    [
        "linear of equals", "linear of zeros", "combination of equals", "combination of zeros",
        "combination of scheduled zeros", "ties of equals", "ties of zeros", "task arithmetic of equals",
        "task arithmetic of zeros", "slerp of equals", "slerp of zero", "noise of equals",
    ],
)  # fmt: skip
def test_equal_inputs_and_zero_coefficients_give_the_bases_bytes(
    models: dict[str, Path], twins: list[Path], tmp_path: Path, kind: str
):
    surgeon.apply(equal_or_zero(models, twins)[kind], tmp_path / "out", shard_size="1TB")
    assert contents(tmp_path / "out") == contents(models["a"])


def test_ties_on_equal_magnitudes_keeps_the_first_ones(tmp_path: Path):
    """In bf16 the magnitude at the cut is shared by many entries: which of them stay is a rule, the flat order."""
    count = (1 << 20) + 5000
    base = {"w": torch.zeros(count, dtype=torch.bfloat16)}
    tuned = {"w": torch.ones(count, dtype=torch.bfloat16)}
    a, b = (surgeon.open(write_checkpoint(tmp_path / name, held)) for name, held in (("a", base), ("b", tuned)))
    for density, block in ((0.3, "64kB"), (0.999, "64MB")):
        out = tmp_path / f"out{density}"
        surgeon.apply(surgeon.merge("ties", [b], base_model=a, density=density), out, block=block)
        kept = read_checkpoint(out)["w"] != 0
        assert int(kept.sum()) == int(density * count)
        assert bool(kept[: int(density * count)].all())


def test_ties_over_the_model_is_ties_of_the_concatenation(tmp_path: Path):
    """The threshold of the whole model, ties in the tensors' order, against the method on all entries as one vector."""
    shapes = {"x": (37, 11), "y": (5000,), "z": (3, 3)}
    held = {
        name: {k: (v * 8).round().bfloat16() for k, v in random_tensors(shapes, seed, 1.0).items()}
        for seed, name in enumerate("abc")
    }
    a, b, c = (surgeon.open(write_checkpoint(tmp_path / name, value)) for name, value in held.items())
    merged = surgeon.merge("ties", [b, c], base_model=a, density=[0.25, 0.6], over="model")
    surgeon.apply(merged, tmp_path / "out", dtype="float32")
    out = read_checkpoint(tmp_path / "out")
    flat = {name: torch.cat([value[k].float().flatten() for k in shapes]) for name, value in held.items()}
    from surgeon.methods.ties import ties

    expected = ties(torch.stack([flat["b"] - flat["a"], flat["c"] - flat["a"]]), (1.0, 1.0), (0.25, 0.6))
    assert torch.equal(torch.cat([out[k].flatten() for k in shapes]), flat["a"] + expected)


def test_what_spans_the_model_below_what_spans_a_tensor(models: dict[str, Path], tmp_path: Path):
    """A merge with a statistic of its own over one that needs the whole model's first."""
    inner = recipes(models)["ties over the model"]
    outer = surgeon.merge("slerp", [surgeon.open(models["b"])], base_model=inner, t=0.25)
    digests = set()
    for number, block in enumerate(("64kB", "4MB")):
        surgeon.apply(outer, tmp_path / str(number), block=block, shard_size="1TB")
        digests.add(digest(tmp_path / str(number)))
    assert len(digests) == 1
    surgeon.apply(inner, tmp_path / "inner", dtype="float64")
    two_steps = surgeon.merge("slerp", [surgeon.open(models["b"])], base_model=surgeon.open(tmp_path / "inner"), t=0.25)
    surgeon.apply(two_steps, tmp_path / "two", dtype="float64")
    surgeon.apply(outer, tmp_path / "one", dtype="float64")
    one, two = read_checkpoint(tmp_path / "one"), read_checkpoint(tmp_path / "two")
    for name, value in one.items():
        assert torch.allclose(value, two[name], rtol=1e-5, atol=1e-7), name


def test_a_listener_sees_the_work_end_and_changes_nothing(models: dict[str, Path], reference, tmp_path: Path):
    seen = []
    expr = recipes(models)["ties"]
    surgeon.apply(expr, tmp_path / "out", shard_size="1TB", on_event=seen.append)
    assert digest(tmp_path / "out") == digest(reference("ties"))
    assert [event.done for event in seen] == sorted(event.done for event in seen)
    assert seen[-1].done == seen[-1].total


class _Memory:
    """A sink that keeps the bytes: the engine asks no more of what it writes to."""

    def __init__(self, plan) -> None:
        self.held = {target.name: bytearray(target.spec.nbytes) for target in plan.targets}

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        self.held[tensor][start : start + len(data)] = data

    def copy(self, tensor: str, source) -> None:
        with source.file.open("rb") as file:
            file.seek(source.offset)
            self.held[tensor][:] = file.read(source.spec.nbytes)

    def sync(self, files) -> None:
        raise AssertionError("there is no journal to sync for")


def test_another_sink_gets_the_same_bytes(models: dict[str, Path], reference):
    plan = build_plan(Recipe(recipes(models)["ties"], Output()), Options(threads=2))
    sink = _Memory(plan)
    done = run(plan, sink)
    assert {name: bytes(data) for name, data in sink.held.items()} == contents(reference("ties"))
    assert set(done) == set(sink.held)
    assert dataclasses.is_dataclass(next(iter(done.values())))
