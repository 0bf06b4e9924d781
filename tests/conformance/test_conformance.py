"""mergekit's own recipes: the same numbers where the method is there, a refusal by name where it is not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import surgeon

HERE = Path(__file__).parent
DONE = sorted(path.stem for path in (HERE / "expected").glob("*.safetensors"))
LATER = sorted({path.stem for path in (HERE / "configs").glob("*.yml")} - set(DONE))
#: Entries that may lie on the other side of a tie, where a method chooses entries by a threshold.
TIES = {name: 1e-4 for name in DONE if name.startswith(("ties", "breadcrumbs", "sce"))}


@pytest.fixture(autouse=True)
def inside(monkeypatch):
    monkeypatch.chdir(HERE)


def disagreement(ours: torch.Tensor, theirs: torch.Tensor, may_differ: float) -> float:
    """Relative error, after setting aside that share of the entries that differ most."""
    error = (ours.double() - theirs.double()).abs().flatten()
    aside = int(may_differ * error.numel())
    kept = error.sort().values[: error.numel() - aside]
    return float(kept.norm() / theirs.double().norm().clamp_min(1e-30))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def in_our_order(theirs: dict[str, torch.Tensor], name: str, out: Path) -> dict[str, torch.Tensor]:
    """mergekit numbers the tokens of a union by the order of a set, which changes from run to run: rows by token."""
    vocabulary = json.loads((HERE / "expected" / f"{name}.vocab.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.get_vocab().keys() == vocabulary.keys()
    order = torch.tensor([vocabulary[token] for _, token in sorted((i, t) for t, i in tokenizer.get_vocab().items())])
    for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = theirs[tensor]
        theirs[tensor] = torch.cat([rows[order], rows[len(order) :]])
    return theirs


def test_there_is_something_to_compare():
    assert len(DONE) >= 34
    assert len(DONE) + len(LATER) >= 36


@pytest.mark.parametrize("name", DONE)
def test_agrees_with_mergekit(name, tmp_path):
    surgeon.apply(f"configs/{name}.yml", tmp_path / "out", threads=1)
    ours, theirs = weights(tmp_path / "out"), load_file(HERE / "expected" / f"{name}.safetensors")
    assert ours.keys() == theirs.keys()
    if (HERE / "expected" / f"{name}.vocab.json").exists():
        theirs = in_our_order(theirs, name, tmp_path / "out")
    for tensor, expected in theirs.items():
        assert (ours[tensor].dtype, ours[tensor].shape) == (expected.dtype, expected.shape), tensor
        assert disagreement(ours[tensor], expected, TIES.get(name, 0.0)) <= 1e-6, tensor


@pytest.mark.parametrize("name", DONE)
def test_the_dumped_recipe_gives_the_same_bytes(name, tmp_path):
    """A translated recipe and its native form are one expression, so one output."""
    recipe = surgeon.load_recipe(f"configs/{name}.yml")
    native = tmp_path / "native.yaml"
    native.write_text(surgeon.dump_recipe(recipe))
    assert surgeon.load_recipe(native) == recipe
    surgeon.apply(f"configs/{name}.yml", tmp_path / "mergekit", threads=1)
    surgeon.apply(native, tmp_path / "native", threads=1)
    file = "model.safetensors"
    assert (tmp_path / "native" / file).read_bytes() == (tmp_path / "mergekit" / file).read_bytes()


@pytest.mark.parametrize("name", LATER)
def test_what_is_not_done_is_refused_by_name(name, tmp_path):
    with pytest.raises(surgeon.RecipeError) as refused:
        surgeon.apply(f"configs/{name}.yml", tmp_path / "out")
    text = (HERE / "configs" / f"{name}.yml").read_text()
    method = next(line.split()[-1] for line in text.splitlines() if line.startswith("merge_method"))
    assert method in str(refused.value) or "slices" in str(refused.value)
    assert "not done by this version" in str(refused.value)
    assert not (tmp_path / "out").exists()
