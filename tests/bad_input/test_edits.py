"""Bad input of edits, fits and `find`: one clear message, the right place, exit code 2, and nothing left behind."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.artifacts.direction import bank, direction
from surgeon.tuning.report import write_found
from surgeon_cli import installation, main

TINY = Path(__file__).parents[1] / "data/tiny"
WORDS = "tree sun moon house car river stone bird lamp glass wind door".split()
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
#: Line 5 is the direction, line 7 the edit.
HEAD = "surgeon: 1\nmodels:\n  base: ./base\ndirections:\n"
STEP = "steps:\n  edited:\n    edit: ablate\n    of: base\n    directions: [d]\n"
FILE = HEAD + "  d: ./d.safetensors\n" + STEP
FIT = HEAD + "  d: {fit: mean_difference, model: base, positive: ./p.jsonl, negative: ./n.jsonl, at: block.1}\n" + STEP


def lines(*examples: Mapping[str, Any]) -> str:
    return "".join(json.dumps(example) + "\n" for example in examples)


POSITIVE = [{"prompt": f"Repeat the word {word}."} for word in WORDS]
NEGATIVE = [{"prompt": f"Say {word} to me, please"} for word in WORDS]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, its direction and contrast sets."""
    shutil.copytree(TINY / "model", tmp_path / "base")
    direction(torch.ones(96), at="block.1", name="d").save(tmp_path / "d.safetensors")
    (tmp_path / "p.jsonl").write_text(lines(*POSITIVE))
    (tmp_path / "n.jsonl").write_text(lines(*NEGATIVE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def says(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Runs `surgeon ARGUMENTS`: exit code and what it says; a failure leaves nothing that was not there."""

    def run(*arguments: str) -> tuple[int, str]:
        before = {path.name for path in place.iterdir()}
        monkeypatch.setattr(sys, "argv", ["surgeon", *arguments])
        monkeypatch.setattr(installation, "check", lambda: None)
        with pytest.raises(SystemExit) as end:
            main.run()
        told = capfd.readouterr().err
        code = int(end.value.code or 0)
        if code:
            assert {path.name for path in place.iterdir()} == before
            assert "Traceback" not in told
            assert "bug in surgeon" not in told
            assert "rror: " in told
            assert len(told) < 2000
        return code, told

    return run


def refused(says, text: str, *, planned: bool = True, options: tuple[str, ...] = ()) -> str:
    """What `plan` and `apply` say, which is the same; where it only shows in the texts, `apply` alone."""
    Path("recipe.yaml").write_text(text)
    code, told = says("apply", "recipe.yaml", "-o", "out", *options)
    assert code == 2, told
    assert "next: " in told
    assert says("plan", "recipe.yaml", *options) == ((2, told) if planned else (0, ""))
    return told


def changed_config(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


SETS: dict[str, tuple[str, str | None, str]] = {
    "empty": ("", lines(*NEGATIVE), "p.jsonl: the file holds no examples"),
    "blank": ("\n \n", lines(*NEGATIVE), "p.jsonl: the file holds no examples"),
    "both empty": ("", "", "n.jsonl: the file holds no examples"),
    "equal": (lines(*POSITIVE), lines(*reversed(POSITIVE)), "the positive and the negative examples are the same"),
    "overlapping": (lines(*POSITIVE), lines(*NEGATIVE, POSITIVE[3]), "n.jsonl:13) (remove them"),
    "of two kinds": (lines(*POSITIVE), lines({"text": "Plain."}), "one set of the contrast holds chats"),
    "mixed": (lines(*POSITIVE, {"text": "Plain."}), lines(*NEGATIVE), "p.jsonl:13: chats and plain texts are mixed"),
    "no JSON": (lines(*POSITIVE) + "{oops\n", lines(*NEGATIVE), "p.jsonl:13: not JSON"),
    "a wrong key": (lines({"promt": "Hello"}), lines(*NEGATIVE), "did you mean 'prompt'?"),
    "missing": (lines(*POSITIVE), None, "n.jsonl: No such file"),
}


@pytest.mark.parametrize("kind", SETS)
def test_contrast_sets_that_show_nothing(says, kind: str):
    """Refused by `plan` already, at the fit or at the line that is wrong."""
    positive, negative, words = SETS[kind]
    Path("p.jsonl").write_text(positive)
    Path("n.jsonl").unlink() if negative is None else Path("n.jsonl").write_text(negative)
    told = refused(says, FIT)
    assert words in told
    assert "recipe.yaml:5: " in told or "p.jsonl:" in told
    code, told = says("find", "--model", "./base", "--positive", "p.jsonl", "--negative", "n.jsonl", "-o", "found")
    assert code == 2
    assert words.partition(" (")[0] in told or kind == "both empty"


def test_a_fit_on_a_step_refuses_its_sets_before_the_step_is_made(says):
    Path("p.jsonl").unlink()
    Path("n.jsonl").write_text("")
    text = FIT.replace("model: base", "model: half").replace("./n.jsonl", "./n.jsonl, neutral: ./calm.jsonl")
    told = refused(says, text.replace("steps:\n", "steps:\n  half: {combine: 0.5*base + 0.5*other}\n").replace(
        "directions:\n", "  other: ./base\ndirections:\n", 1))  # fmt: skip
    for words in ("/p.jsonl: No such file", "n.jsonl: the file holds no examples", "calm.jsonl: No such", "3 errors"):
        assert words in told


def test_a_chat_template_asked_for_and_missing(says, place: Path):
    (place / "base" / "chat_template.jinja").unlink()
    told = refused(says, FIT, planned=False)
    assert "has no chat template" in told
    assert '{"text": "…"}' in told
    code, told = says("find", "--model", "./base", "--positive", "p.jsonl", "--negative", "n.jsonl", "-o", "found")
    assert code == 2
    assert "has no chat template" in told
    for name, side in (("p.jsonl", POSITIVE), ("n.jsonl", NEGATIVE)):
        Path(name).write_text(lines(*({"text": one["prompt"]} for one in side)))
    assert says("apply", "recipe.yaml", "-o", "out")[0] == 0


def test_a_model_without_tokenizer(says, place: Path):
    for name in TOKENIZER:
        (place / "base" / name).unlink()
    told = refused(says, FIT)
    assert "recipe.yaml:5: base has no tokenizer" in told
    code, told = says("find", "--model", "./base", "--positive", "p.jsonl", "--negative", "n.jsonl", "-o", "found")
    assert code == 2
    assert "has no tokenizer" in told


def test_a_prompt_beyond_the_context(says):
    Path("p.jsonl").write_text(lines(*POSITIVE, {"prompt": "word " * 3000}))
    told = refused(says, FIT, planned=False)
    assert "p.jsonl:13: " in told
    assert "the model's context is 512" in told


DIRECTIONS: dict[str, tuple[Callable[[], Any], str]] = {
    "wide": (lambda: direction(torch.ones(95), at="block.1"), "d is 95 wide and the stream 96"),
    "NaN": (lambda: direction(torch.full((96,), float("nan")), at="block.1"), "d at block.1 holds NaN"),
    "infinite": (lambda: direction(torch.full((96,), float("inf")), at="block.1"), "d at block.1 holds NaN"),
    "zero": (lambda: direction(torch.zeros(2, 96), at="block.1"), "a row of zeros"),
    "another model's": (lambda: direction(torch.ones(96), at="block.1", model="0" * 64, model_ref="org/other"),
                        "d was measured on another model (org/other)"),
    "elsewhere": (lambda: direction(torch.ones(96), at="block.9"), "d holds nothing at block.1"),
    "half a bank": (lambda: bank({"embed": torch.ones(96)}), "d holds no direction of its own at block.0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DIRECTIONS)
def test_a_direction_that_does_not_fit(says, kind: str):
    made, words = DIRECTIONS[kind]
    made().save(Path("d.safetensors"))
    used = "block.1" if kind == "elsewhere" else "own" if kind == "half a bank" else ""
    told = refused(says, FILE.replace("./d.safetensors", f"{{file: ./d.safetensors, at: {used}}}") if used else FILE)
    assert "recipe.yaml:5: d " in told
    assert words in told


def test_another_models_direction_may_be_insisted_on(says):
    DIRECTIONS["another model's"][0]().save(Path("d.safetensors"))
    assert "--any-model" in refused(says, FILE)
    assert says("apply", "recipe.yaml", "-o", "out", "--any-model")[0] == 0


def test_a_direction_of_a_fine_tune_is_another_models(says, place: Path):
    """Headers are equal; the bytes tell."""
    held = load_file(place / "base/model.safetensors")
    save_file({name: value * 1.01 for name, value in held.items()}, place / "base/model.safetensors", {"format": "pt"})
    from surgeon.store.checkpoint import open_checkpoint
    from surgeon.store.fingerprint import fingerprint

    mark = fingerprint(open_checkpoint(TINY / "model", "tiny"))
    direction(torch.ones(96), at="block.1", model=mark, model_ref="tiny").save(place / "d.safetensors")
    assert "d was measured on another model (tiny)" in refused(says, FILE)


@pytest.mark.parametrize(
    ("name", "words"),
    [("gone.safetensors", "no such file"), ("base/model.safetensors", "is not an artifact"), ("p.jsonl", "p.jsonl: ")],
)
def test_a_direction_file_that_is_none(says, name: str, words: str):
    told = refused(says, FILE.replace("d.safetensors", name))
    assert "recipe.yaml:5: " in told
    assert words in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FIT.replace("block.1", "block.9"), "recipe.yaml:5: base has no residual point 'block.9'"),
        (FIT.replace("block.1", "blok.1"), "recipe.yaml:5: at is a residual point, not 'blok.1'"),
        (FIT.replace("at: block.1", "at: block.1, position: middle"), "'middle' is no position"),
        (FIT.replace("at: block.1", "at: block.1, winsorise: .nan"), "winsorise must be a number"),
        (FILE + "    layers: 1..9\n", "layers 1..9 do not lie in the model's 0..3"),
        (FILE + "    layers: 2..1\n", "recipe.yaml:11: layers 2..1 holds no block"),
        (FILE + "    writers: atention\n", "did you mean 'attention'?"),
        (FILE + "    tied: no\n", "recipe.yaml:11: 'tied' is"),
    ],
)  # fmt: skip
def test_a_place_that_does_not_exist(says, text: str, words: str):
    assert words in refused(says, text)


@pytest.mark.parametrize("value", [".nan", "nan", ".inf", "-.inf", "lots", "[.nan, 1]"])
def test_a_strength_that_is_no_number(says, value: str):
    told = refused(says, FILE + f"    strength: {value}\n")
    assert "recipe.yaml:11: strength must be a number" in told
    if "[" not in value:
        Path("recipe.yaml").write_text(FILE + "    strength: 1\n")
        for verb in (("plan", "recipe.yaml"), ("apply", "recipe.yaml", "-o", "out")):
            code, told = says(*verb, "--set", f"steps.edited.strength={value}")
            assert code == 2
            assert "strength must be a number" in told


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("nan")]])
def test_a_strength_in_python_that_is_no_number(place: Path, value: Any):
    with pytest.raises(surgeon.RecipeError, match="not a finite number"):
        surgeon.edit("ablate", surgeon.open(place / "base"), directions=place / "d.safetensors", strength=value)


def test_a_fit_in_python_that_makes_no_sense(place: Path):
    base = surgeon.open(place / "base")
    for fitter, at, settings in (("mean", "block.1", ()), ("mean_difference", "block.7", ()),
                                 ("mean_difference", "block.1", (("position", "middle"),))):  # fmt: skip
        fit = surgeon.Fit(fitter, base, str(place / "p.jsonl"), str(place / "n.jsonl"), at, settings)
        with pytest.raises(surgeon.RefusedError, match=r"mean|block\.7|middle"):
            surgeon.plan(surgeon.edit("ablate", base, directions=fit))


@pytest.mark.parametrize("budget", [float("nan"), -1.0])
def test_a_budget_that_makes_no_sense(says, budget: float):
    sets = ("--positive", "p.jsonl", "--negative", "n.jsonl")
    code, told = says("find", "--model", "./base", *sets, "-o", "found", "--budget", str(budget))
    assert code == 2
    assert "budget" in told
    with pytest.raises(surgeon.RefusedError, match="budget"):
        surgeon.find("./base", "p.jsonl", "n.jsonl", "found", budget=budget)
    assert not Path("found").exists()


def test_an_unknown_architecture(says, place: Path):
    changed_config(place / "base", model_type="lama")
    for text in (FILE, FIT):
        told = refused(says, text)
        assert "recipe.yaml:7: base: edits must know" in told
        assert "no table is declared for 'lama'" in told
        assert "did you mean 'llama'?" in told


def test_unknown_writers_are_listed(says, place: Path):
    held = load_file(place / "base/model.safetensors")
    extra = {f"model.layers.{i}.side.out_proj.weight": torch.zeros(96, 8) for i in range(3)}
    save_file(held | extra, place / "base/model.safetensors", {"format": "pt"})
    told = refused(says, FILE)
    assert all(name in told for name in extra)
    assert "allow_partial: true" in told
    Path("recipe.yaml").write_text(FILE + "    allow_partial: true\n")
    assert says("apply", "recipe.yaml", "-o", "out")[0] == 0


@pytest.mark.parametrize("packed", [False, True])
def test_a_quantised_base(says, place: Path, packed: bool):
    """Also where its tensors are packed under names and shapes of their own."""
    changed_config(place / "base", quantization_config={"quant_method": "gptq"})
    if packed:
        held = load_file(place / "base/model.safetensors")
        for name in [name for name in held if "_proj.weight" in name]:
            rows, columns = held.pop(name).shape
            held[name.replace("weight", "qweight")] = torch.zeros(columns // 8, rows, dtype=torch.int32)
        save_file(held, place / "base/model.safetensors", {"format": "pt"})
    for text in (FILE, FIT):
        told = refused(says, text)
        assert "recipe.yaml:3: base is quantised" in told
        assert "unpacking it takes gptqmodel" in told
    sets = ("--positive", "p.jsonl", "--negative", "n.jsonl")
    code, told = says("find", "--model", "./base", *sets, "-o", "found")
    assert code == 2
    assert "quantised" in told


def test_an_adapter_is_neither_edited_nor_measured_on(says):
    adapter = TINY / "adapters/list"
    told = refused(says, FILE.replace("./base", str(adapter)))
    assert "base is an adapter" in told
    beside = f"./base\n  style: {adapter}\n"
    told = refused(says, FIT.replace("./base\n", beside).replace("model: base", "model: style"))
    assert "recipe.yaml:6: style is an adapter" in told
    text = FILE.replace("./base\n", beside).replace("of: base", "of: moved")
    told = refused(says, text.replace("steps:\n", "steps:\n  moved: {combine: base + style - base}\n"))
    assert "adapter" in told or "sum to 0" in told


def test_an_untied_model_and_a_tied_one_do_not_mix(says):
    text = FILE.replace("./base\n", "./base\n  other: ./base\n") + "  half: {combine: 0.5*edited + 0.5*again}\n"
    told = refused(says, text.replace("again", "other"))
    assert "lm_head.weight: only in edited" in told
    assert "reshape: untie" in told
    assert "tied: both" in told
    Path("recipe.yaml").write_text(text.replace("steps:\n", "steps:\n  again: {reshape: untie, of: other}\n"))
    assert says("apply", "recipe.yaml", "-o", "out")[0] == 0
    Path("recipe.yaml").write_text(text.replace("again", "other").replace("[d]\n", "[d]\n    tied: both\n"))
    assert says("apply", "recipe.yaml", "-o", "out2")[0] == 0


def test_models_that_differ_in_more_are_told_so(says, place: Path):
    held = load_file(place / "base/model.safetensors")
    (place / "other").mkdir()
    (place / "other/config.json").write_text((place / "base/config.json").read_text())
    save_file(held | {"lm_head.weight": torch.ones(512, 96), "more": torch.ones(2)}, place / "other/model.safetensors")
    told = refused(says, "surgeon: 1\nmodels: {a: ./base, b: ./other}\nsteps: {m: {combine: 0.5*a + 0.5*b}}\n")
    assert "share names" in told
    assert "untie" not in told


def test_a_find_that_fails_while_writing_leaves_no_half_folder(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor does it touch a folder that stands."""
    held = direction(torch.ones(96), at="block.1")
    report = {
        "chosen": {"words": "w", "at": "own", "layers": "", "writers": "all", "strength": 1.0}, "name": "d",
        "rates": {"before": {"n": 1, "rate": 1.0}, "after": {"n": 1, "rate": 0.0}}, "kl": {"chats_and_text": 0.1},
        "model": {"ref": "./base"},
    }  # fmt: skip
    monkeypatch.setattr("surgeon.tuning.report.write_report", lambda *given: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(surgeon.RunError, match="full"):
        write_found(report, held, place / "found")
    assert not list(place.glob("*found*"))
    monkeypatch.setattr("surgeon.tuning.report.write_report", lambda report, folder: (folder / "plots").mkdir())
    write_found(report, held, place / "found")
    (place / "found/notes.txt").write_text("mine")
    write_found(report | {"name": "e"}, held, place / "found")
    assert {path.name for path in (place / "found").iterdir()} >= {"recipe.yaml", "report.json", "notes.txt"}
    assert "e: {file: ./direction.safetensors" in (place / "found/recipe.yaml").read_text()
    assert not list(place.glob(".found*"))


def test_layers_in_python_are_a_pair(place: Path):
    with pytest.raises(surgeon.RecipeError, match=r"'0\.\.1' is no range of layers"):
        surgeon.edit("ablate", surgeon.open(place / "base"), layers="0..1")  # type: ignore[arg-type]
