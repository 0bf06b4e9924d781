"""`tune` on the tiny trained model: what it writes, that applying gives what was learned, and that it can go on."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.artifacts.coefficients import Coefficients
from surgeon.directions.examples import read_examples
from surgeon.runtime.load import load
from surgeon.space.expr import Merge
from surgeon.testing.toys import read_checkpoint
from surgeon.tuning.lessons import lesson, score
from surgeon_cli import installation, main

TINY = Path(__file__).parents[1] / "data" / "tiny"
WORDS = "silver maple lantern river garden window orange paper summer yellow mountain kitchen winter island".split()
PAIRS = [f"{one} {other}" for one, other in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)]
RECIPE = """surgeon: 1
models: {base: TINY/model, initials: TINY/adapters/initials, list: TINY/adapters/list}
steps:
  merged: {merge: task_arithmetic, base_model: base, models: [initials, list], weight: WEIGHT}
tune: {neutral: TINY/contrast/neutral.jsonl, prompts: {initials: ./initials.jsonl, list: ./list.jsonl}, tokens: 12}
"""


def lines(path: Path, prompts: list[str]) -> None:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    lines(tmp_path / "initials.jsonl", [f"Give the initials: {pair}" for pair in PAIRS])
    lines(tmp_path / "list.jsonl", [f"Make a list: {pair}" for pair in PAIRS])
    return tmp_path


def recipe(place: Path, weight: str = "0.6", **changes: str) -> Path:
    text = RECIPE.replace("WEIGHT", weight)
    for old, new in changes.items():
        text = text.replace(old, new)
    (place / "recipe.yaml").write_text(text.replace("TINY", str(TINY)))
    return place / "recipe.yaml"


def test_what_is_applied_is_what_was_learned(place: Path):
    tuned = surgeon.tune(recipe(place), place / "tuned", steps=12, batch=6)
    rows = {row["name"]: row for row in tuned.report["rows"]}
    learned, start = rows["per row"], rows["start"]
    assert sum(learned["kl"].values()) < 0.7 * sum(start["kl"].values())
    assert learned["losses"][-1] < learned["losses"][0]
    assert {path.name for path in tuned.folder.iterdir()} == {
        "recipe.yaml", "coefficients.safetensors", "report.json"
    }  # fmt: skip
    assert json.loads((tuned.folder / "report.json").read_text()) == tuned.to_dict()
    surgeon.apply(tuned.folder / "recipe.yaml", place / "out", dtype="float32")
    assert surgeon.verify(place / "out").exit_code == 0
    expert = load(TINY / "model", device="cpu")
    surgeon.apply_to(expert, surgeon.open(TINY / "model") + surgeon.open(TINY / "adapters/list"))
    held = lesson(expert, "list", read_examples(place / "list.jsonl"), 1.0, 12).held
    found = score(load(place / "out", device="cpu"), held)
    assert found.kl == pytest.approx(learned["kl"]["list"], abs=1e-5)
    assert found.agreement == learned["agreement"]["list"]


def test_no_steps_give_the_recipe_as_it_was(place: Path):
    tuned = surgeon.tune(recipe(place), place / "tuned", steps=0, per="layer")
    held = Coefficients.load(place / "tuned/coefficients.safetensors")
    assert held.models == ("initials", "list")
    assert all(torch.equal(value, torch.tensor([0.6, 0.6])) for value in held.tensors.values())
    start, learned = tuned.report["rows"]
    assert learned["agreement"] == start["agreement"]
    assert learned["kl"] == pytest.approx(start["kl"], abs=1e-5)
    for name, file in (("given", place / "recipe.yaml"), ("again", place / "tuned/recipe.yaml")):
        surgeon.apply(file, place / name, dtype="float32")
    one, other = (read_checkpoint(place / name) for name in ("given", "again"))
    assert all(torch.allclose(one[name], other[name], atol=1e-7) for name in one)


def test_compare_tells_what_each_buys_and_the_same_run_gives_the_same_file(place: Path):
    file = recipe(place)
    tuned = surgeon.tune(file, place / "a", steps=2, compare=True, per="tensor")
    assert [row["name"] for row in tuned.report["rows"]] == [
        "start", "per model", "per layer", "per tensor", "per row"
    ]  # fmt: skip
    assert [row["numbers"] for row in tuned.report["rows"][1:]] == [2, 6, 42, 2 * 3 * (96 * 2 + 96 * 2 + 256 * 2)]
    surgeon.tune(file, place / "b", steps=2, per="tensor")
    names = [place / name / "coefficients.safetensors" for name in "ab"]
    assert names[0].read_bytes() == names[1].read_bytes()
    told = tuned.summary()
    assert "recipe as written" in told
    assert "learned per tensor" in told


def test_whole_models_are_tuned_like_adapters(place: Path):
    base = surgeon.open(TINY / "model")
    for name in ("initials", "list"):
        surgeon.apply(base + surgeon.open(TINY / "adapters" / name), place / name, dtype="float32")
    file = recipe(place)
    adapters = surgeon.tune(file, place / "low", steps=3, per="tensor")
    file = recipe(place, **{f"TINY/adapters/{name}": f"./{name}" for name in ("initials", "list")})
    whole = surgeon.tune(file, place / "dense", steps=3, per="tensor")
    low, dense = (Coefficients.load(one.folder / "coefficients.safetensors").tensors for one in (adapters, whole))
    assert low.keys() < dense.keys()
    for name, value in low.items():
        torch.testing.assert_close(value, dense[name], rtol=0, atol=2e-3)
    surgeon.apply(place / "dense/recipe.yaml", place / "out")
    assert surgeon.verify(place / "out").exit_code == 0


def test_open_numbers_are_searched_and_the_search_goes_on(place: Path):
    pytest.importorskip("optuna")
    file = recipe(place, "{search: [0.1, 1.5]}")
    whole = surgeon.tune(file, place / "whole", trials=4, budget=1.0)
    surgeon.tune(file, place / "parts", trials=2, budget=1.0)
    parts = surgeon.tune(file, place / "parts", trials=4, budget=1.0, resume=True)
    assert whole.report["trials"] == parts.report["trials"]
    assert len(whole.report["trials"]) == 4
    best = max(whole.report["trials"], key=lambda trial: trial["score"])
    assert whole.report["chosen"] == best
    found = surgeon.load_recipe(place / "whole/recipe.yaml").expr
    assert isinstance(found, Merge)
    assert float(dict(found.settings)["weight"]) == best["values"]["steps.merged.weight"]
    surgeon.apply(place / "whole/recipe.yaml", place / "out")
    with pytest.raises(surgeon.RefusedError, match="of another search"):
        surgeon.tune(file, place / "parts", trials=5, budget=0.5, resume=True)


@pytest.fixture
def says(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Runs `surgeon tune recipe.yaml -o tuned ARGUMENTS`: exit code and what it says."""
    monkeypatch.chdir(place)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["surgeon", "tune", "recipe.yaml", "-o", "tuned", *arguments])
        monkeypatch.setattr(installation, "check", lambda: None)
        with pytest.raises(SystemExit) as end:
            main.run()
        told = capfd.readouterr()
        assert not (place / "tuned/recipe.yaml").exists() or not end.value.code
        return int(end.value.code or 0), told.out + told.err

    return run


TWO = "models: [initials, list], weight"
REFUSED = [
    # what the recipe has otherwise, the arguments, and what is said
    ({"list: ./list.jsonl": ""}, (), "list has no prompts"),
    ({"prompts: {initials: ./initials.jsonl, list: ./list.jsonl}, ": ""}, (), "initials, list have no prompts"),
    ({}, ("--prompts", "lst=list.jsonl"), "prompts are given for 'lst'"),
    ({}, ("--prompts", "list"), "is not NAME=FILE"),
    ({"list: ./list.jsonl": "list: ./initials.jsonl"}, (), "the prompts of initials and list overlap"),
    ({"list: ./list.jsonl": "list: ./few.jsonl"}, (), "at least 4 are needed"),
    ({"list: ./list.jsonl": "list: ./none.jsonl"}, (), "none.jsonl"),
    ({TWO: "models: [initials], weight", ", list: TINY/adapters/list": ""}, (), "here is initials alone"),
    ({"weight: 0.6": "weight: [0.2, 0.6]"}, (), "plain numbers as weights"),
    ({"task_arithmetic": "ties"}, (), "coefficients are learned for plain arithmetic"),
    ({}, ("--per", "column"), "not 'column'"),
    ({}, ("--resume",), "nothing to resume"),
    ({"weight: 0.6": "weight: {search: [0, 1]}"}, ("--per", "row"), "one after the other"),
    ({"weight: 0.6": "weight: {search: [0, 1]}"}, ("--resume",), "nothing to resume"),
    ({"weight: 0.6": "weight: {search: [1, 0]}"}, (), "the lower first"),
]


@pytest.mark.parametrize(("changes", "arguments", "said"), REFUSED, ids=[said for _, _, said in REFUSED])
def test_what_cannot_be_tuned_is_refused(says, place: Path, changes, arguments, said):
    lines(place / "few.jsonl", ["Make a list: a b"] * 9)
    recipe(place, **changes)
    code, told = says(*arguments)
    assert code == 2
    assert said in told


def test_experts_that_do_not_fit_are_refused_before_anything_is_learned(says, place: Path):
    shutil.copytree(TINY / "adapters/list", place / "other")
    config = json.loads((place / "other/adapter_config.json").read_text())
    (place / "other/adapter_config.json").write_text(json.dumps({**config, "r": 3}))
    recipe(place, **{"TINY/adapters/list": "./other"})
    code, told = says()
    assert code == 2
    assert "rank 3" in told


def test_a_folder_in_use_is_not_written_into(place: Path):
    (place / "tuned").mkdir()
    (place / "tuned/notes.txt").write_text("mine")
    with pytest.raises(surgeon.OutputError, match="not empty"):
        surgeon.tune(recipe(place), place / "tuned")
    with pytest.raises(surgeon.RefusedError, match="not written by tune"):
        surgeon.tune(recipe(place), place / "tuned", overwrite=True)


def test_memory_that_is_not_there_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch):
    surgeon.apply(surgeon.open(TINY / "model") + surgeon.open(TINY / "adapters/list"), place / "list")
    monkeypatch.setattr("surgeon.tuning.changes.free_memory", lambda: 1_000_000)
    with pytest.raises(surgeon.BudgetError, match=r"2 experts in \d+ tensors take"):
        surgeon.tune(recipe(place, **{"TINY/adapters/list": "./list"}), place / "tuned")
