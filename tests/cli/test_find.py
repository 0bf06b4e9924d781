"""`surgeon find`, `surgeon measure residual`, `--any-model`: what reaches surgeon, and a whole run on a tiny model."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import surgeon
from surgeon_cli.main import app

TINY = Path(__file__).parents[1] / "data/tiny/model"
WORDS = "tree sun moon house car river stone bird lamp glass wind door".split()
SETS = ["--positive", "p.jsonl", "--negative", "n.jsonl"]


def ask(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="surgeon")


class Told:
    """Stands for what a verb gives, and keeps what it was asked."""

    def __init__(self):
        self.asked = None

    def __call__(self, *arguments, **named):
        self.asked = arguments, named
        return self

    def summary(self):
        return "the summary"

    def explain(self):
        return "the plan"

    def to_dict(self):
        return {"some": "data"}


@pytest.fixture
def verb(monkeypatch):
    told = Told()
    for name in ("find", "measure_residual", "plan", "apply"):
        monkeypatch.setattr(surgeon, name, told)
    return told


def test_find_hands_over_what_is_asked(verb):
    held = ["--held-positive", "hp.jsonl", "--held-negative", "hn.jsonl", "--neutral", "calm.jsonl", "--overwrite"]
    said = ["--shows", "^Sure", "--budget", "0.1", "--position", "first:3", "--name", "sure", "--device", "cpu"]
    settings = ["--set", "components=8", "--set", "guard=false", "--set", "project=neutral", "--set", "winsorise=0.99"]
    result = ask("find", "--model", "org/base", *SETS, *held, *said, *settings, "--fit", "mean_difference", "-o", "f")
    assert result.output == "the summary\n"
    assert verb.asked == (
        (),
        {
            "model": "org/base", "positive": Path("p.jsonl"), "negative": Path("n.jsonl"), "out": Path("f"),
            "held_out": (Path("hp.jsonl"), Path("hn.jsonl")), "fit": "mean_difference", "position": "first:3",
            "neutral": Path("calm.jsonl"), "shows": "^Sure", "budget": 0.1, "name": "sure", "device": "cpu",
            "dtype": "float32", "overwrite": True, "on_event": None, "components": 8, "guard": False,
            "project": "neutral", "winsorise": 0.99,
        },
    )  # fmt: skip


def test_find_leaves_to_surgeon_what_is_not_said(verb):
    result = ask("find", "--model", "./m", *SETS, "-o", "f", "--json")
    assert json.loads(result.output) == {"some": "data"}
    _, named = verb.asked
    assert (named["held_out"], named["shows"], named["neutral"], named["overwrite"]) == (None, None, None, False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--held-positive", "hp.jsonl"], "--held-negative"),
        (["--set", "components"], "KEY=VALUE"),
        (["--set", "position=last"], "position"),
        (["--set", "on_event=x"], "on_event"),
        (["--budget", "-1"], "--budget"),
    ],
)
def test_what_does_not_go_together_is_refused(verb, arguments, told):
    result = ask("find", "--model", "./m", *SETS, "-o", "f", *arguments)
    assert result.exit_code == 2
    assert told in result.output
    assert verb.asked is None


def test_measure_hands_over_what_is_asked(verb):
    result = ask(
        "measure", "residual", "out", "--direction", "d.safetensors", "--at", "block.1", "--prompts", "p.jsonl"
    )
    assert result.output == "the summary\n"
    wanted = {"at": "block.1", "prompts": Path("p.jsonl"), "device": "auto", "dtype": "float32"}
    assert verb.asked == (("out", Path("d.safetensors")), wanted)


@pytest.mark.parametrize("arguments", [["plan", "r.yaml"], ["apply", "r.yaml", "-o", "out"]])
def test_any_model_is_said_or_not(verb, arguments):
    for extra, wanted in (([], False), (["--any-model"], True)):
        assert ask(*arguments, *extra).exit_code == 0
        assert verb.asked[1]["any_model"] is wanted


def test_find_apply_and_measure_on_a_tiny_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file, text in (("p.jsonl", "Repeat the word {}."), ("n.jsonl", "Say {} to me, please")):
        Path(file).write_text("".join(json.dumps({"prompt": text.format(word)}) + "\n" for word in WORDS))
    found = ask("find", "--model", TINY, *SETS, "-o", "found", "--set", "components=4", "--device", "cpu", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.output)["chosen"]["strength"]
    held = surgeon.Direction.load(Path("found/direction.safetensors"))
    assert held.about["settings"]["components"] == 4
    assert ask("plan", "found/recipe.yaml").exit_code == 0
    again = ask("find", "--model", TINY, *SETS, "-o", "found")
    assert isinstance(again.exception, surgeon.OutputError)
    recipe = Path("everywhere.yaml")
    recipe.write_text(
        f"surgeon: 1\nmodels: {{base: {TINY}}}\n"
        "directions: {d: {file: ./found/direction.safetensors, at: block.1}}\n"
        "steps: {edited: {edit: ablate, of: base, directions: [d]}}\noutput: {dtype: float32}\n"
    )
    assert ask("apply", recipe, "-o", "out").exit_code == 0
    measured = [
        ask("measure", "residual", model, "--direction", "found/direction.safetensors", "--at", "block.1", "--json")
        for model in (TINY, "out")
    ]
    before, after = (json.loads(one.output) for one in measured)
    assert len(after["points"]) == 1 + 2 * 3
    assert before["worst"] > 0.1
    assert after["worst"] < 1e-5
