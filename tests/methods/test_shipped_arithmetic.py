"""Recipes that ship for arithmetic and averages: each loads, plans, and gives the numbers its first lines promise."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import surgeon
from surgeon.testing.toys import llama_shapes, random_tensors, write_checkpoint

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/data/tiny"
ADAPTERS = {"json": "initials", "sql": "list", "plus": "initials", "minus": "list", "a": "initials", "b": "list"}


def weights(folder):
    return load_file(folder / "model.safetensors")


def written(recipe, out, **models):
    """What a shipped recipe gives in float32, with its models replaced."""
    overrides = {f"models.{name}": str(path) for name, path in models.items()} | {"output.dtype": "float32"}
    path = ROOT / "recipes" / f"{recipe}.yaml"
    assert surgeon.plan(path, overrides=overrides).tier in "AB"
    surgeon.apply(path, out, overrides=overrides)
    return weights(out)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """The tiny model, and what each of its adapters changes, in float64."""
    place = tmp_path_factory.mktemp("pieces")
    base = {name: value.double() for name, value in weights(TINY / "model").items()}
    found = {"base": base}
    for name in ("initials", "list"):
        tuned = surgeon.open(TINY / "model") + surgeon.open(TINY / "adapters" / name)
        surgeon.apply(tuned, place / name, dtype="float32")
        found[name] = {tensor: value.double() - base[tensor] for tensor, value in weights(place / name).items()}
    return found


def lines_scale(tensor, alpha=0.4, beta=0.6, layers=3):
    """λ of a tensor: α + β (l − 1)/(L − 1) for layer l, counted from 1."""
    if ".layers." in tensor:
        return alpha + beta * int(tensor.split(".")[2]) / (layers - 1)
    return alpha if "embed" in tensor else alpha + beta


@pytest.mark.parametrize(
    ("recipe", "models", "expected"),
    [
        ("wise-ft", ["json"], lambda base, one, other, name: base + 0.5 * one),
        ("contrastive-steering", ["plus", "minus"], lambda base, one, other, name: base + 0.5 * (one - other)),
        ("analogy", ["a", "b", "c"], lambda base, one, other, name: base + other + (other - one)),
        ("lines", ["json", "sql"], lambda base, one, other, name: base + lines_scale(name) * (one + other)),
    ],
)
def test_arithmetic(tmp_path, pieces, recipe, models, expected):
    given = {name: TINY / "adapters" / ADAPTERS.get(name, "list") for name in models}
    out = written(recipe, tmp_path / "out", base=TINY / "model", **given)
    changed = 0
    for name, value in out.items():
        want = expected(pieces["base"][name], pieces["initials"][name], pieces["list"][name], name)
        torch.testing.assert_close(value.double(), want, rtol=0, atol=1e-6)
        changed += not torch.equal(value.double(), pieces["base"][name])
    assert changed > 6


@pytest.fixture
def series(tmp_path):
    return [write_checkpoint(tmp_path / f"at-{n}", random_tensors(llama_shapes(), seed=n)) for n in range(4)]


def test_a_soup_is_the_mean(tmp_path, series):
    out = written("soup", tmp_path / "out", **dict(zip(("first", "second", "third"), series, strict=False)))
    held = [weights(folder) for folder in series[:3]]
    for name, value in out.items():
        torch.testing.assert_close(value, sum(each[name] for each in held) / 3)


def test_a_checkpoint_average_follows_the_series(tmp_path, series):
    names = [f"step_{n}000" for n in range(1, 5)]
    out = written("checkpoint-average", tmp_path / "out", **dict(zip(names, series, strict=True)))
    held = [weights(folder) for folder in series]
    for name, value in out.items():
        mean = held[0][name]
        for taken, decay in ((1, 0.5), (2, 2 / 3), (3, 0.7)):
            mean = decay * mean + (1 - decay) * held[taken][name]
        torch.testing.assert_close(value, mean)
