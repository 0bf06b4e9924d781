"""`merge: tuned` is base + Σ c ⊙ (x − base), in any layout, in any blocks, from a recipe that keeps its file."""

import shutil
from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.artifacts.coefficients import Coefficients, coefficients
from surgeon.testing.toys import random_tensors, read_checkpoint, write_checkpoint

SHAPES = {
    "model.layers.0.w": (300, 200), "model.layers.1.conv1d": (200, 300), "model.norm.weight": (24,),
    "experts": (3, 8, 5),
}  # fmt: skip
OWN = {
    "model.layers.0.w": (300, 1), "model.layers.1.conv1d": (1, 300), "model.norm.weight": (), "experts": (3, 8, 1)
}  # fmt: skip


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    return {name: write_checkpoint(tmp_path / name, random_tensors(SHAPES, seed)) for seed, name in enumerate("abc")}


@pytest.fixture
def recipe(models: dict[str, Path], tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(9)
    held = {name: torch.randn((2, *own), generator=generator) for name, own in OWN.items()}
    coefficients(held, ["b", "c"]).save(tmp_path / "coefficients.safetensors")
    listed = "".join(f"  {name}: ./{name}\n" for name in models)
    step = "{merge: tuned, base_model: a, models: [b, c], coefficients: ./coefficients.safetensors}"
    (tmp_path / "recipe.yaml").write_text(f"surgeon: 1\nmodels:\n{listed}steps:\n  merged: {step}\n")
    return tmp_path / "recipe.yaml"


def expected(models, tmp_path):
    a, b, c = (read_checkpoint(models[name]) for name in "abc")
    held = Coefficients.load(tmp_path / "coefficients.safetensors").tensors
    of = {name: held[name].reshape(2, *(own or [1] * len(SHAPES[name]))) for name, own in OWN.items()}
    return {n: a[n] + (of[n][0] * (b[n] - a[n]) + of[n][1] * (c[n] - a[n])) for n in SHAPES}


def test_it_is_the_formula_in_blocks_of_any_size(models, recipe, tmp_path):
    wanted, found = expected(models, tmp_path), set()
    for number, how in enumerate([{"block": "16kB"}, {"block": "4MB", "threads": 2}]):
        surgeon.apply(recipe, tmp_path / str(number), **how)
        written = read_checkpoint(tmp_path / str(number))
        assert all(torch.equal(written[name], value) for name, value in wanted.items())
        found.add((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert len(found) == 1


def test_the_order_of_the_recipe_does_not_matter(models, recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("[b, c]", "[c, b]"))
    surgeon.apply(recipe, tmp_path / "out")
    for name, value in expected(models, tmp_path).items():
        torch.testing.assert_close(read_checkpoint(tmp_path / "out")[name], value)


def test_the_output_keeps_the_file_and_is_proven_by_it(models, recipe, tmp_path):
    surgeon.apply(recipe, tmp_path / "out")
    kept = tmp_path / "out/surgeon/coefficients.safetensors"
    assert kept.read_bytes() == (tmp_path / "coefficients.safetensors").read_bytes()
    (tmp_path / "coefficients.safetensors").unlink()
    assert surgeon.verify(tmp_path / "out").exit_code == 0
    surgeon.apply(tmp_path / "out/surgeon/recipe.yaml", tmp_path / "again")
    names = [path / "model.safetensors" for path in (tmp_path / "out", tmp_path / "again")]
    assert names[0].read_bytes() == names[1].read_bytes()
    held = Coefficients.load(kept)
    coefficients({n: v + 0.01 for n, v in held.tensors.items()}, held.models).save(kept)
    assert surgeon.verify(tmp_path / "out").exit_code == 3


def test_plan_refuses_coefficients_of_other_models_or_shapes(models, recipe, tmp_path):
    shutil.copytree(models["c"], tmp_path / "d")
    recipe.write_text(recipe.read_text().replace("c: ./c", "d: ./d").replace("[b, c]", "[b, d]"))
    with pytest.raises(surgeon.MismatchError, match="coefficients are of b, c, not of b, d"):
        surgeon.plan(recipe)
    coefficients({name: torch.ones(2, 7) for name in SHAPES}, ["b", "d"]).save(tmp_path / "coefficients.safetensors")
    with pytest.raises(surgeon.MismatchError, match=r"are \[2, 7\], and the tensor"):
        surgeon.plan(recipe)
