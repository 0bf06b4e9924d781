"""Recipes that measure: a fit on the result of a step is made once, kept over a kill, and the files are gone after."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.directions.contrast import Contrast
from surgeon.directions.fit import fit as measure
from surgeon.runtime.load import load
from surgeon.space.expr import DirectionRef, Edit, Fit

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/data/tiny"
WORDS = "tree sun moon house car river stone bird lamp glass wind door".split()
RECIPE = f"""\
surgeon: 1
models:
  base: {TINY / "model"}
  list: {TINY / "adapters/list"}
directions:
  d: {{fit: mean_difference, model: merged, positive: ./p.jsonl, negative: ./n.jsonl, at: block.1}}
steps:
  merged:
    combine: base + 0.5*list
  edited:
    edit: ablate
    of: merged
    directions: [d]
"""
#: The first direction is measured on an input, the second on what is left once the first is taken out.
_SECOND = "  e: {fit: mean_difference, model: edited, positive: ./p.jsonl, negative: ./n.jsonl, at: own}\n"
TWICE = (
    RECIPE.replace("model: merged", "model: base").replace("steps:", _SECOND + "steps:")
    + "  final:\n    edit: ablate\n    of: edited\n    directions: [e]\n    writers: attention\n"
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a recipe and its contrast sets."""
    for name, text in (("p.jsonl", "Repeat the word {}."), ("n.jsonl", "Say {} to me, please")):
        (tmp_path / name).write_text("".join(json.dumps({"prompt": text.format(word)}) + "\n" for word in WORDS))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "twice.yaml").write_text(TWICE)
    return tmp_path


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry a fit that runs the model."""
    done: list[str] = []

    def counting(*given, **named):
        done.append(named["name"])
        return measure(*given, **named)

    monkeypatch.setattr("surgeon.directions.fit.fit", counting)
    return done


def digest(out: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(out.glob("*.safetensors")))).hexdigest()


def left(place: Path) -> set[str]:
    """What lies beside the recipe that was not there before."""
    return {path.name for path in place.iterdir()} - {"p.jsonl", "n.jsonl", "recipe.yaml", "twice.yaml"}


def test_a_fit_on_a_step_is_a_fit_on_that_steps_output(place: Path, passes: list[str]):
    plan = surgeon.plan(place / "recipe.yaml")
    assert plan.to_dict()["stages"] == 2
    surgeon.apply(place / "recipe.yaml", place / "out")
    assert passes == ["d"]
    assert left(place) == {"out"}
    surgeon.apply(plan.fits[0].model, place / "merged", dtype="float32")
    contrast = Contrast.read(place / "p.jsonl", place / "n.jsonl")
    alone = measure(load(place / "merged"), "mean_difference", contrast, at="block.1")
    kept = surgeon.Direction.load(place / "out/surgeon/d.safetensors")
    assert torch.equal(kept.rows("block.1"), alone.rows("block.1"))
    assert surgeon.verify(place / "out").exit_code == 0


def test_the_resolved_recipe_gives_the_same_bytes_without_measuring(place: Path, passes: list[str]):
    surgeon.apply(place / "twice.yaml", place / "out")
    assert passes == ["d", "e"]
    assert left(place) == {"out"}
    surgeon.apply(place / "out/surgeon/recipe.yaml", place / "again")
    assert passes == ["d", "e"]
    assert digest(place / "out") == digest(place / "again")
    assert surgeon.verify(place / "out").exit_code == 0


@pytest.mark.parametrize("recipe", ["recipe.yaml", "twice.yaml"])
def test_blocks_threads_and_shards_change_no_byte(place: Path, recipe: str):
    surgeon.apply(place / recipe, place / "one", threads=1)
    surgeon.apply(place / recipe, place / "two", threads=2, block="16kB")
    assert digest(place / "one") == digest(place / "two")


def interrupt_build(monkeypatch: pytest.MonkeyPatch, dtype: str, finished: int = 0) -> None:
    """Ctrl-C in a build that writes this dtype, after so many tensors."""
    from surgeon.engine.run import Worker

    work, seen = Worker.run, []

    def interrupted(worker, target, reader):
        if worker.plan.recipe.output.dtype == dtype:
            if len(seen) == finished:
                raise KeyboardInterrupt
            seen.append(target.name)
        return work(worker, target, reader)

    monkeypatch.setattr(Worker, "run", interrupted)


@pytest.mark.parametrize("finished", [0, 3, 20])
@pytest.mark.parametrize(("recipe", "fits"), [("recipe.yaml", ["d"]), ("twice.yaml", ["d", "e"])])
def test_interrupted_after_the_fits_it_goes_on_without_them(
    place: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch, recipe: str, fits: list[str], finished: int
):
    with monkeypatch.context() as patch:
        interrupt_build(patch, "BF16", finished)
        with pytest.raises(KeyboardInterrupt):
            surgeon.apply(place / recipe, place / "out", dtype="bfloat16")
    assert passes == fits
    assert not (place / "out").exists()
    surgeon.apply(place / recipe, place / "out", dtype="bfloat16", resume=True)
    assert passes == fits
    assert left(place) == {"out"}
    surgeon.apply(place / recipe, place / "expected", dtype="bfloat16")
    assert digest(place / "out") == digest(place / "expected")


def test_interrupted_between_two_fits_only_the_second_is_made(
    place: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C while the second stage is being written, then once more while the model runs on it."""
    with monkeypatch.context() as patch:
        interrupt_build(patch, "F32", 4)
        with pytest.raises(KeyboardInterrupt):
            surgeon.apply(place / "twice.yaml", place / "out")
    assert passes == ["d"]
    with monkeypatch.context() as patch:
        patch.setattr("surgeon.directions.fit.measure", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            surgeon.apply(place / "twice.yaml", place / "out", resume=True)
    built = list(place.glob(".out.stages.surgeon/data/stage-*/model*.safetensors"))
    assert len(built) == 1
    when = built[0].stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("surgeon.directions.fit.measure", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            surgeon.apply(place / "twice.yaml", place / "out")
    assert built[0].stat().st_mtime_ns == when
    surgeon.apply(place / "twice.yaml", place / "out")
    assert passes == ["d", "e", "e", "e"]
    assert left(place) == {"out"}
    surgeon.apply(place / "twice.yaml", place / "expected")
    assert digest(place / "out") == digest(place / "expected")


def test_two_fits_on_one_step_share_its_stage(place: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch):
    (place / "recipe.yaml").write_text(
        RECIPE.replace("steps:", "  e: {fit: mean_difference, model: merged, positive: ./n.jsonl, negative: ./p.jsonl,"
                       " at: block.0}\nsteps:").replace("[d]", "[d, e]")
    )  # fmt: skip
    loads = []
    monkeypatch.setattr("surgeon.runtime.load.load", lambda *given, **named: loads.append(1) or load(*given, **named))
    surgeon.apply(place / "recipe.yaml", place / "out")
    assert passes == ["d", "e"]
    assert loads == [1]


def interrupted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An apply that has measured and not yet written."""
    with monkeypatch.context() as patch:
        interrupt_build(patch, "BF16")
        with pytest.raises(KeyboardInterrupt):
            surgeon.apply(place / "recipe.yaml", place / "out", dtype="bfloat16")


def test_what_changed_is_measured_again(place: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch):
    interrupted(place, monkeypatch)
    with (place / "p.jsonl").open("a") as file:
        file.write('{"prompt": "Repeat the word bell."}\n')
    surgeon.apply(place / "recipe.yaml", place / "out", dtype="bfloat16")
    assert passes == ["d", "d"]
    assert left(place) == {"out"}


def test_another_recipe_is_not_resumed_and_fresh_starts_over(
    place: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
):
    interrupted(place, monkeypatch)
    with pytest.raises(surgeon.OutputError, match="another recipe"):
        surgeon.apply(place / "recipe.yaml", place / "out", dtype="float32", resume=True)
    surgeon.apply(place / "recipe.yaml", place / "out", dtype="bfloat16", resume=False)
    assert passes == ["d", "d"]
    with pytest.raises(surgeon.OutputError, match="does not exist"):
        surgeon.apply(place / "recipe.yaml", place / "other", resume=True)
    assert left(place) == {"out"}


def test_an_out_that_may_not_be_written_is_refused_before_anything_is_measured(place: Path, passes: list[str]):
    (place / "out").mkdir()
    (place / "out/notes.txt").write_text("precious")
    for overwrite, message in ((False, "exists"), (True, "no checkpoint")):
        with pytest.raises(surgeon.OutputError, match=message):
            surgeon.apply(place / "recipe.yaml", place / "out", overwrite=overwrite)
    with pytest.raises(surgeon.OutputError, match="or inside it"):
        surgeon.apply(place / "recipe.yaml", TINY / "model" / "out")
    assert not list((TINY / "model").glob(".*"))
    assert passes == []
    assert left(place) == {"out"}


def test_a_failure_for_good_leaves_nothing(place: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch):
    def fail(*given):
        raise surgeon.RunError("out of luck")

    monkeypatch.setattr("surgeon.engine.run.Worker.run", fail)
    (place / "recipe.yaml").write_text(RECIPE.replace("model: merged", "model: base"))
    with pytest.raises(surgeon.RunError, match="out of luck"):
        surgeon.apply(place / "recipe.yaml", place / "deep/er/out")
    assert passes == ["d"]
    assert left(place) == set()


def test_a_direction_in_memory_below_a_fit(place: Path, passes: list[str]):
    """The stage's own edit is along it; it need not be saved first."""
    base = surgeon.open(TINY / "model")
    held = Edit("ablate", base, (DirectionRef(surgeon.Direction({"block.0": torch.ones(1, 96)}, {"at": "block.0"})),))
    fit = Fit("mean_difference", held, str(place / "p.jsonl"), str(place / "n.jsonl"), at="block.2", name="d")
    surgeon.apply(surgeon.edit("ablate", held, directions=fit), place / "out")
    assert passes == ["d"]
    names = {file.name for file in (place / "out/surgeon").glob("*.safetensors")}
    assert names == {"d.safetensors", "direction.safetensors"}


def test_a_fit_is_measured_where_it_is_used():
    fit = Fit("mean_difference", surgeon.open(TINY / "model"), "/p", "/n", at="own")
    assert DirectionRef(fit, "block.2") == DirectionRef(replace(fit, at="block.2"))


#: The command with every tensor of the output slowed down, so that a signal meets it at work.
SLOW = """
import time, surgeon.engine.run as running
from surgeon_cli.main import run
work = running.Worker.run
def slow(worker, *arguments):
    record = work(worker, *arguments)
    time.sleep(0.25 if worker.plan.recipe.output.dtype == "BF16" else 0)
    return record
running.Worker.run = slow
run()
"""


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'cli'}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def test_killed_between_the_fit_and_the_end(place: Path, passes: list[str]):
    """kill -9, and a second apply meanwhile: the file of the fit is the same one afterwards."""
    out, command = place / "out", ("apply", place / "recipe.yaml", "-o", place / "out", "--dtype", "bfloat16")
    process = start(*command)
    journal = place / ".out.surgeon/journal"
    until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 2, process)
    with pytest.raises(surgeon.OutputError, match=rf"process {process.pid} is building"):
        surgeon.apply(place / "recipe.yaml", out, dtype="bfloat16")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    assert len(list(place.glob(".out.stages.surgeon/data/*.safetensors"))) == 1
    surgeon.apply(place / "recipe.yaml", out, dtype="bfloat16", resume=True)
    assert passes == []
    assert left(place) == {"out"}
    assert surgeon.verify(out).exit_code == 0


def test_a_model_in_memory_takes_what_is_measured(place: Path, passes: list[str]):
    from transformers import AutoModelForCausalLM

    surgeon.apply(place / "twice.yaml", place / "out")
    expected = AutoModelForCausalLM.from_pretrained(place / "out").state_dict()
    model = AutoModelForCausalLM.from_pretrained(TINY / "model")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with surgeon.apply_to(model, place / "twice.yaml"):
        assert passes == ["d", "e"] * 2
        found = model.state_dict()
        assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])] == []
