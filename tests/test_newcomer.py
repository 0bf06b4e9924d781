"""A newcomer adds a merge method, an edit, a fitter, a family: one file, and everything knows it.

The files are those that CONTRIBUTING.md shows.
"""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import surgeon
import surgeon.anatomy.family as family_tables
import surgeon.recipe as recipe_floor
import surgeon.recipe.schema as schema_models
import surgeon.space.registry as registry
from surgeon.artifacts.artifact import Artifact
from surgeon.artifacts.direction import Direction, direction
from surgeon.directions.contrast import Contrast
from surgeon.directions.examples import Example
from surgeon.directions.fit import fit
from surgeon.measuring.residual import residual
from surgeon.runtime.load import load
from surgeon.testing import edit_laws, laws
from surgeon.testing.toys import random_tensors, read_checkpoint, toy_llama, write_checkpoint

ROOT = Path(__file__).parents[1]

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(title: str) -> str:
    """The file that CONTRIBUTING.md shows under a heading."""
    return PAGE.partition(f"## {title}\n")[2].partition("```python\n")[2].partition("```")[0]


METHOD = example("Add a merge method")
#: Entry-point group → module → its file, as CONTRIBUTING.md has it.
FILES = {
    "methods": {"dropped": METHOD},
    "edits": {"limit": example("Add an edit")},
    "fitters": {"diagonal": example("Add a fitter")},
    "families": {"olmo2": example("Add a family")},
}

OTHERS = '''"""Methods that ask for more."""

import torch
from torch import Tensor

from surgeon.artifacts.artifact import Artifact
from surgeon.space.method import merge_method
from surgeon.space.numeric import column
from surgeon.space.parameters import Models, PerModel, TaskVectors, each


@merge_method
def damped(task_vectors: TaskVectors, damping: Artifact, weight: PerModel[float] = each(1.0)) -> Tensor:
    """Scale every column by a measured vector."""
    factor = damping.tensors["factor"][: task_vectors.shape[-1]].to(task_vectors)
    return sum(w * t for w, t in zip(weight, task_vectors, strict=True)) * factor


@merge_method(blocks="rows", breaks={"zero": "a row is scaled back to its length only nearly"})
def levelled(models: Models, weight: PerModel[float] = each(1.0)) -> Tensor:
    """Average rows of equal length."""
    if models.ndim < 3:
        return (models * column(weight, models)).sum(0) / sum(weight)
    lengths = torch.linalg.vector_norm(models, dim=-1, keepdim=True)
    mean = (models / lengths * column(weight, models)).sum(0) / sum(weight)
    return mean * lengths.mean(0)


@merge_method(breaks={"model_order": "the first gives the space", "zero": "it rounds", "one_model": "it rounds"})
def projected(models: Models) -> Tensor:
    """The mean, within the first model's row space: needs the whole tensor."""
    mean = models.mean(0)
    if mean.ndim != 2:
        return mean
    return mean @ (torch.linalg.pinv(models[0]) @ models[0])
'''


def forget() -> None:
    """Look for what is registered again."""
    for module in (registry, schema_models, family_tables):
        for value in vars(module).values():
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A distribution `our-methods` and its metadata, on the path as an installer would put it."""
    site = tmp_path / "site"
    (site / "our_methods").mkdir(parents=True)
    (site / "our_methods" / "__init__.py").write_text("")
    info = site / "our_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: our-methods\nVersion: 1.0\n")
    points = ""
    for group, files in {**FILES, "methods": {**FILES["methods"], "others": OTHERS}}.items():
        points += f"[surgeon.{group}]\n" + "".join(f"{name} = our_methods.{name}\n" for name in files)
        for name, text in files.items():
            (site / "our_methods" / f"{name}.py").write_text(text, encoding="utf-8")
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(site))
    forget()
    yield site
    for name in [name for name in sys.modules if name.startswith("our_methods")]:
        del sys.modules[name]
    forget()


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    shapes = {"model.layers.0.w": (600, 700), "model.layers.1.w": (13, 24), "model.norm.weight": (24,)}
    return {
        name: write_checkpoint(tmp_path / name, random_tensors(shapes, seed, dtype=torch.bfloat16))
        for seed, name in enumerate("abc")
    }


def recipe(models: dict[str, Path], step: str) -> str:
    listed = "".join(f"  {name}: {path}\n" for name, path in models.items())
    return f"surgeon: 1\nmodels:\n{listed}steps:\n  merged:\n    {step}\n"


def test_each_file_is_short():
    for files in FILES.values():
        for text in files.values():
            assert 5 < len(text.splitlines()) <= 30


def test_schema_methods_and_laws_know_it(package: Path):
    schema = json.dumps(recipe_floor.json_schema())
    assert '"our-methods/dropped"' in schema
    assert re.search("^our-methods/dropped +Drop entries at random", surgeon.list_methods().explain(), re.MULTILINE)
    told = surgeon.list_methods("our-methods/dropped").explain()
    assert "density" in told
    assert "in (0, 1]" in told
    assert "seed" in told
    for name in ("dropped", "levelled", "projected"):
        laws.check(registry.merge_method_named(f"our-methods/{name}"))


def test_a_recipe_names_it_and_a_seed_decides_its_bytes(package: Path, models: dict[str, Path], tmp_path: Path):
    text = recipe(models, "{merge: our-methods/dropped, base_model: a, models: {b: {density: 0.4}, c: {}}, seed: SEED}")
    outs = []
    for number, (seed, block) in enumerate([("1", "64kB"), ("1", "4MB"), ("2", "4MB")]):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text.replace("SEED", seed))
        surgeon.apply(file, tmp_path / f"out{number}", block=block)
        outs.append((tmp_path / f"out{number}" / "model.safetensors").read_bytes())
    assert outs[0] == outs[1] != outs[2]
    resolved = tmp_path / "out0" / "surgeon" / "recipe.yaml"
    surgeon.apply(resolved, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == outs[0]
    kept = read_checkpoint(tmp_path / "out0")["model.layers.0.w"] != read_checkpoint(models["a"])["model.layers.0.w"]
    assert 0.65 < kept.float().mean() < 0.75  # 1 − 0.6 · 0.5


def test_the_order_of_models_does_not_change_the_noise(package: Path, models: dict[str, Path], tmp_path: Path):
    a, b, c = (surgeon.open(models[name]) for name in "abc")
    for name, members in (("bc", [b, c]), ("cb", [c, b])):
        surgeon.apply(surgeon.merge("our-methods/dropped", members, base_model=a), tmp_path / name, dtype="float32")
    one, other = (read_checkpoint(tmp_path / name) for name in ("bc", "cb"))
    for name, value in one.items():
        assert torch.allclose(value, other[name], atol=1e-6)


@pytest.mark.parametrize("method", ["levelled", "projected"])
def test_rows_and_whole_methods_stream_to_the_same_bytes(
    package: Path, models: dict[str, Path], tmp_path: Path, method: str
):
    a, b, c = (surgeon.open(models[name]) for name in "abc")
    found = set()
    for number, settings in enumerate([{"block": "64kB"}, {"block": "16MB"}, {"block": "1MB", "threads": 2}]):
        surgeon.apply(surgeon.merge(f"our-methods/{method}", [a, b, c]), tmp_path / str(number), **settings)
        found.add((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert len(found) == 1
    plain = registry.merge_method_named(f"our-methods/{method}")
    stack = torch.stack([read_checkpoint(path)["model.layers.1.w"].float() for path in models.values()])
    settings = {"weight": (1.0, 1.0, 1.0)} if method == "levelled" else {}
    written = read_checkpoint(tmp_path / "0")["model.layers.1.w"]
    assert torch.equal(written, plain(stack, **settings).bfloat16())


def test_a_method_takes_an_artifact(package: Path, models: dict[str, Path], tmp_path: Path):
    factor = torch.linspace(0, 1, 700)
    Artifact({"factor": factor}, {"made": "by hand"}).save(tmp_path / "damping.safetensors")
    a, b = (surgeon.open(models[name]) for name in "ab")
    damping = str(tmp_path / "damping.safetensors")
    surgeon.apply(surgeon.merge("our-methods/damped", [b], base_model=a, damping=damping), tmp_path / "out")
    base, tuned = (read_checkpoint(models[name])["model.layers.0.w"].float() for name in "ab")
    expected = base + (tuned - base) * factor
    assert torch.equal(read_checkpoint(tmp_path / "out")["model.layers.0.w"], expected.bfloat16())
    assert surgeon.load_recipe(tmp_path / "out/surgeon/recipe.yaml").expr == surgeon.merge(
        "our-methods/damped", [b], base_model=a, damping=damping
    )
    assert surgeon.verify(tmp_path / "out").exit_code == 0
    (tmp_path / "damping.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(surgeon.RefusedError, match="not an artifact"):
        surgeon.plan(surgeon.merge("our-methods/damped", [b], base_model=a, damping=damping))


def test_an_edit_has_laws_docs_and_a_promise(package: Path, tmp_path: Path):
    edit_laws.check(registry.edit_named("our-methods/limit"))
    assert re.search("^our-methods/limit +Shorten what a column", surgeon.list_methods().explain(), re.MULTILINE)
    told = surgeon.list_methods("our-methods/limit")
    assert "removes all of the directions: at bound 0" in told.explain()
    assert told.to_dict()["edits"]["our-methods/limit"]["settings"]["bound"]["range"] == "[0, inf)"
    along = direction(torch.randn(2, 32, generator=torch.Generator().manual_seed(1)), at="block.1", name="hedging")
    model = surgeon.open(toy_llama(tmp_path / "toy"))
    soft, hard = (surgeon.edit("our-methods/limit", model, directions=along, bound=bound) for bound in (0.2, 0))
    assert [surgeon.plan(one).to_dict()["edits"][0]["claim"] for one in (soft, hard)] == [None, "everywhere"]
    frame = torch.linalg.qr(along.rows("block.1").T).Q
    for name, expr, bound in (("soft", soft, 0.2), ("hard", hard, 0.0)):
        surgeon.apply(expr, tmp_path / name)
        written = frame.T @ read_checkpoint(tmp_path / name)["model.layers.1.mlp.down_proj.weight"]
        assert abs(written.norm(dim=0).max() - bound) < 1e-6
        assert surgeon.verify(tmp_path / name).exit_code == 0


def test_a_recipe_names_the_edit(package: Path, tmp_path: Path):
    assert '"our-methods/limit"' in json.dumps(recipe_floor.json_schema())
    direction(torch.ones(32), at="block.1").save(tmp_path / "d.safetensors")
    text = f"surgeon: 1\nmodels: {{base: {toy_llama(tmp_path / 'toy')}}}\ndirections: {{d: ./d.safetensors}}\n"
    step = "steps: {edited: {edit: our-methods/limit, of: base, directions: [d], bound: BOUND}}\n"
    (tmp_path / "recipe.yaml").write_text(text + step.replace("BOUND", "0"))
    assert surgeon.plan(tmp_path / "recipe.yaml").to_dict()["edits"][0]["claim"] == "everywhere"
    (tmp_path / "recipe.yaml").write_text(text + step.replace("BOUND", "-1"))
    with pytest.raises(surgeon.RecipeError, match=r"recipe.yaml:4.*bound"):
        surgeon.plan(tmp_path / "recipe.yaml")


def test_a_fitter_has_docs_and_fits(package: Path, tmp_path: Path):
    told = surgeon.list_methods("our-methods/diagonal").explain()
    assert "mean and second moments" in told
    assert re.search(r"ridge +float in \(0, inf\) +default 0.1", told)
    sets = [torch.randn(50, 6, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, 7) for seed in (1, 2)]
    sets[0][:, 2] += 9
    found = registry.fitter_named("our-methods/diagonal")(*sets, ridge=0.01)
    spread = (sets[0].var(0, correction=0) + sets[1].var(0, correction=0)).double() / 2
    wanted = (sets[0].double().mean(0) - sets[1].double().mean(0)) / (spread + 0.01 * spread.mean())
    torch.testing.assert_close(found, wanted / wanted.norm())
    model = load(ROOT / "tests/data/tiny/model", dtype="float32", device="cpu")
    words = "tree sun moon house car river".split()
    contrast = Contrast(
        tuple(Example({"prompt": f"Repeat the word {word}."}) for word in words),
        tuple(Example({"prompt": f"Say {word} to me, please"}) for word in words),
    )
    bank = fit(model, "our-methods/diagonal", contrast, at="block.1", settings={"ridge": 0.5})
    assert bank.about["settings"]["ridge"] == 0.5
    bank.save(tmp_path / "bank.safetensors")
    assert Direction.load(tmp_path / "bank.safetensors").about["fitter"] == "our-methods/diagonal"
    with pytest.raises(surgeon.RecipeError, match="ridge must lie in"):
        fit(model, "our-methods/diagonal", contrast, at="block.1", settings={"ridge": 0})


def test_a_family_is_shown_and_edited_exactly(package: Path, tmp_path: Path):
    import transformers

    config = transformers.Olmo2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(tmp_path / "toy")
    shown = surgeon.show(tmp_path / "toy")
    roles = {group.pattern: group.role for group in shown.groups}
    assert roles["model.layers.N.mlp.down_proj.weight"] == "writes residual: mlp, then output norm"
    assert roles["model.layers.N.post_attention_layernorm.weight"] == "output norm (gain w)"
    assert shown.roles is not None
    assert shown.roles.unknown == ()
    along = direction(torch.randn(3, 32), at="block.0")
    edited = surgeon.edit("ablate", surgeon.open(tmp_path / "toy"), directions=along)
    ids = torch.randint(3, 64, (4, 12)).tolist()
    before = residual(load(tmp_path / "toy", device="cpu"), along, ids=ids)
    surgeon.apply(edited, tmp_path / "out", dtype="float32")
    after = residual(load(tmp_path / "out", device="cpu"), along, ids=ids)
    assert len(after) == 5
    assert min(point.ratio for point in before) > 0.1
    assert max(point.ratio for point in after) < 1e-5


def test_the_nearest_name_is_given(package: Path, models: dict[str, Path], tmp_path: Path):
    a, b = (surgeon.open(models[name]) for name in "ab")
    with pytest.raises(surgeon.RefusedError, match="our-methods/dropped"):
        surgeon.merge("our-methods/droped", [b], base_model=a)


def test_a_file_dropped_into_the_folder_is_one_of_surgeons_own(tmp_path: Path, models: dict[str, Path]):
    """In a fresh process whose `surgeon.methods` has one more folder: the command line lists, plans and applies it."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "dropped.py").write_text(METHOD)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe(models, "{merge: dropped, base_model: a, models: [b, c]}"))
    program = (
        f"import surgeon.methods; surgeon.methods.__path__.append({str(folder)!r})\n"
        "from surgeon_cli.main import app\n"
        "import sys; app(sys.argv[1:])"
    )
    for arguments in (["methods", "dropped"], ["schema"], ["apply", str(file), "-o", str(tmp_path / "out")]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False,
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'cli'}", "PATH": "", "HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "dropped" in done.stdout or arguments[0] == "apply"
    assert (tmp_path / "out" / "model.safetensors").is_file()
