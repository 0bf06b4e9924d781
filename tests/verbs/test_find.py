"""`find` on the tiny trained model: what it writes, that its recipe applies, and that the model stays as it is."""

import json
from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.directions.examples import read_examples
from surgeon.measuring import effects
from surgeon.measuring.trial import edited
from surgeon.runtime.load import load
from surgeon.runtime.scores import batch_distributions, batch_log_probabilities, distributions, log_probabilities
from surgeon.runtime.text import encode

TINY = Path(__file__).parents[1] / "data" / "tiny"
SETS = {
    name: TINY / "contrast" / f"{name}.jsonl" for name in ("positive", "negative", "held-positive", "held-negative")
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("matplotlib")
    stages: list[str] = []
    result = surgeon.find(
        TINY / "model", SETS["positive"], SETS["negative"], tmp_path_factory.mktemp("find") / "letters",
        held_out=(SETS["held-positive"], SETS["held-negative"]), neutral=TINY / "contrast" / "neutral.jsonl",
        budget=0.3, components=2, on_event=lambda event: stages.append(event.stage),
    )  # fmt: skip
    assert {"find: writers", "find: scopes", "find: answers", "find: strengths"} <= set(stages)
    return result


def test_the_folder_holds_a_direction_a_recipe_and_a_report(found):
    held = surgeon.Direction.load(found.folder / "direction.safetensors")
    assert held.width == 96
    assert {"block.0", "block.1.mid", "block.2"} <= held.tensors.keys()
    report = json.loads((found.folder / "report.json").read_text(encoding="utf-8"))
    assert report == json.loads(json.dumps(found.to_dict()))
    assert [(one["block"], one["part"]) for one in report["effects"]] == [
        (block, part) for block in range(3) for part in ("attention", "mlp")
    ]
    assert len(report["separation"]) == len(held.tensors)
    assert max(one["auroc"] for one in report["separation"]) > 0.95
    assert report["manner"]["tells_apart"] > 0.9
    assert report["rates"]["before"]["rate"] > 0.8 > 0.2 > report["rates"]["absent"]["rate"]
    assert (found.folder / "report.html").stat().st_size > 10_000
    assert len(list((found.folder / "plots").glob("*.png"))) == 4


def test_the_dose_passes_through_the_unedited_model_and_costs_grow_from_there(found):
    rows = {row["strength"]: row for row in found.report["dose"]}
    assert abs(rows[0.0]["nats"]) < 1e-6
    assert abs(rows[0.0]["kl"]) < 1e-6
    assert rows[2.0]["kl"] > rows[1.0]["kl"] > 0
    assert rows[-2.0]["kl"] > 0


def test_its_recipe_applies_as_it_is_and_is_proven(found, tmp_path: Path):
    plan = surgeon.plan(found.folder / "recipe.yaml")
    assert any("ablate" in target.reason for target in plan.targets)
    surgeon.apply(found.folder / "recipe.yaml", tmp_path / "out")
    assert surgeon.verify(tmp_path / "out").exit_code == 0


def test_a_folder_in_use_is_refused_before_anything_is_measured(found, tmp_path: Path):
    with pytest.raises(surgeon.OutputError, match="not empty"):
        surgeon.find(TINY / "model", SETS["positive"], SETS["negative"], found.folder)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(surgeon.RefusedError, match="not written by find"):
        surgeon.find(TINY / "model", SETS["positive"], SETS["negative"], tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_an_edit_that_was_tried_leaves_the_model_as_it_was():
    loaded = load(TINY / "model")
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    row = surgeon.Direction({"block.1": torch.randn(1, 96)}, {"at": "block.1"})
    neutral = effects.neutral(loaded, read_examples(TINY / "contrast" / "neutral.jsonl")[:6])
    assert neutral.cost(loaded) == pytest.approx(0, abs=1e-9)
    with edited(loaded, surgeon.edit("ablate", surgeon.open(TINY / "model"), directions=row)):
        assert neutral.cost(loaded) > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    assert neutral.cost(loaded) == pytest.approx(0, abs=1e-9)


def test_several_examples_in_one_pass_give_what_each_gives_alone():
    loaded = load(TINY / "model")
    lines = read_examples(SETS["positive"])[:4] + read_examples(TINY / "contrast" / "neutral.jsonl")[:4]
    several = [encode(loaded, {**line, "response": " and so on"}) for line in lines]
    assert len({len(one.ids) for one in several}) > 1
    for one, together in zip(several, batch_log_probabilities(loaded, several), strict=True):
        assert torch.allclose(together, log_probabilities(loaded, one), atol=1e-5)
    for one, together in zip(several, batch_distributions(loaded, several), strict=True):
        assert torch.allclose(together, distributions(loaded, one), atol=1e-5)
