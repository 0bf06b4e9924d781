"""A greedy soup keeps what does not lower the score, in the order of the models' own scores, and is a plain recipe."""

import pytest
import torch
from safetensors.torch import load_file

import surgeon
from surgeon.testing.toys import write_checkpoint

GOAL = torch.tensor([1.0, 1.0, 1.0, 1.0])
MADE = {
    "wild": torch.tensor([9.0, -9.0, 9.0, -9.0]),
    "low": torch.tensor([0.4, 0.6, 0.5, 0.5]),
    "best": torch.tensor([1.2, 1.1, 1.3, 1.2]),
    "other": torch.tensor([0.7, 0.8, 0.7, 0.8]),
}


def closeness(folder):
    assert (folder / "surgeon.json").exists()
    return -float((load_file(folder / "model.safetensors")["w"] - GOAL).norm())


@pytest.fixture
def models(tmp_path):
    return [surgeon.open(write_checkpoint(tmp_path / name, {"w": value}, None)) for name, value in MADE.items()]


def test_what_lowers_the_score_is_left_out(tmp_path, models):
    (tmp_path / "work").mkdir()
    soup = surgeon.greedy_soup(models, closeness, folder=tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())
    assert [str(model) for model, _ in soup.alone] == ["best", "other", "low", "wild"]
    assert [str(model) for model in soup.kept] == ["best", "other"]
    assert dict(soup.to_dict()["tried"]).keys() == {"other", "low", "wild"}
    assert soup.score == pytest.approx(-float(((MADE["best"] + MADE["other"]) / 2 - GOAL).norm()))
    assert "wild: " in soup.summary()
    assert "2 scores" in soup.summary()

    recipe = tmp_path / "soup.yaml"
    recipe.write_text(surgeon.dump_recipe(soup.expr))
    assert surgeon.load_recipe(recipe).expr == soup.expr
    surgeon.apply(recipe, tmp_path / "out")
    torch.testing.assert_close(load_file(tmp_path / "out/model.safetensors")["w"], (MADE["best"] + MADE["other"]) / 2)


def test_a_model_that_changes_nothing_stays(models):
    soup = surgeon.greedy_soup(models, lambda folder: 1.0)
    assert list(soup.kept) == models


@pytest.mark.parametrize(
    ("pick", "score", "message"),
    [
        (lambda models: [], closeness, "one model or more"),
        (lambda models: [models[0], models[0]], closeness, "each once"),
        (lambda models: models, lambda folder: float("nan"), "is not a number"),
    ],
)
def test_refusals(models, pick, score, message):
    with pytest.raises(surgeon.RefusedError, match=message):
        surgeon.greedy_soup(pick(models), score)
