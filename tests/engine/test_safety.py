"""Whatever goes wrong, OUT is what it was or complete, inputs are untouched, and the next try is not blocked."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import surgeon
import surgeon.engine.work as work
from surgeon.testing.toys import random_tensors, write_checkpoint
from tests.support import disks

ROOT = Path(__file__).parents[2]
SHAPES = {f"model.layers.{i}.w": (256, 300) for i in range(12)}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_checkpoint(folder / name, random_tensors(SHAPES, i), shards=4) for i, name in enumerate("abc")]


def merge(paths: list[Path]):
    a, b, c = map(surgeon.open, paths)
    return surgeon.merge("ties", [b, c], base_model=a, density=0.5)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hidden(out: Path) -> Path:
    return out.parent / f".{out.name}.surgeon"


def write_recipe(folder: Path, paths: list[Path]) -> Path:
    file = folder / "recipe.yaml"
    listed = "".join(f"  {name}: {path}\n" for name, path in zip("abc", paths, strict=True))
    step = "steps:\n  merged: {merge: ties, base_model: a, models: [b, c], density: 0.5}\n"
    file.write_text(f"surgeon: 1\nmodels:\n{listed}{step}")
    return file


def start(*arguments: object, program: str = "from surgeon_cli.main import run; run()") -> subprocess.Popen:
    """`surgeon ARGUMENTS` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'cli'}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A suite that runs in the background of a script has Ctrl-C ignored, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


#: The command with every tensor slowed down, so that a signal meets it at work.
SLOW = """
import time, surgeon.engine.run as running
from surgeon_cli.main import run
work = running.Worker.run
def slow(*arguments):
    record = work(*arguments)
    time.sleep(0.25)
    return record
running.Worker.run = slow
run()
"""


def until(condition, process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def finished(out: Path) -> int:
    """How many tensors the journal of a build calls finished."""
    journal = hidden(out) / "journal"
    return max(journal.read_bytes().count(b"\n") - 1, 0) if journal.exists() else 0


def test_ctrl_c_leaves_a_resumable_build_and_says_how_to_go_on(paths: list[Path], tmp_path: Path):
    recipe, out = write_recipe(tmp_path, paths), tmp_path / "out"
    surgeon.apply(recipe, tmp_path / "expected")
    process = start("apply", recipe, "-o", out, program=SLOW)
    until(lambda: finished(out) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in told
    assert "run the same command again" in told
    assert "Traceback" not in told
    assert not out.exists()
    assert 2 <= finished(out) < len(SHAPES)
    surgeon.apply(recipe, out, resume=True)
    assert weights(out) == weights(tmp_path / "expected")
    assert not hidden(out).exists()


def weights(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(folder).items() if name.startswith("model")}


def test_two_applies_to_one_out_at_once(paths: list[Path], tmp_path: Path):
    recipe, out = write_recipe(tmp_path, paths), tmp_path / "out"
    process = start("apply", recipe, "-o", out, program=SLOW)
    until(lambda: finished(out) >= 1, process)
    with pytest.raises(surgeon.OutputError, match=rf"process {process.pid} is building"):
        surgeon.apply(recipe, out)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    surgeon.apply(recipe, tmp_path / "expected")
    assert weights(out) == weights(tmp_path / "expected")


def test_killed_a_few_times_it_ends_in_the_same_bytes(paths: list[Path], tmp_path: Path):
    """The long version, with 200 kills, is in tests/e2e."""
    recipe, out = write_recipe(tmp_path, paths), tmp_path / "out"
    surgeon.apply(recipe, tmp_path / "expected")
    for reached in (1, 4, 8):
        process = start("apply", recipe, "-o", out, program=SLOW)
        until(lambda reached=reached: finished(out) >= reached, process)
        process.kill()
        process.communicate()
        assert not out.exists()
    surgeon.apply(recipe, out)
    assert weights(out) == weights(tmp_path / "expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out", "recipe.yaml"]


def test_what_a_crash_left_half_written_is_made_again(paths: list[Path], tmp_path: Path, monkeypatch):
    """A finished tensor whose bytes are not what the journal says is not trusted."""
    out = tmp_path / "out"
    surgeon.apply(merge(paths), tmp_path / "expected")
    monkeypatch.setattr("surgeon.engine.workspace.Workspace.commit", lambda self: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        surgeon.apply(merge(paths), out)
    monkeypatch.undo()
    shard = next((hidden(out) / "data").glob("model-00002*"))
    data = bytearray(shard.read_bytes())
    data[-1000] ^= 1
    shard.write_bytes(data)
    surgeon.apply(merge(paths), out, resume=True)
    assert weights(out) == weights(tmp_path / "expected")


def test_out_exists_is_refused_and_an_overwrite_that_fails_keeps_it(paths: list[Path], tmp_path: Path, monkeypatch):
    out = tmp_path / "out"
    surgeon.apply(surgeon.open(paths[0]), out)
    before = digests(out)
    with pytest.raises(surgeon.OutputError, match=r"exists(.|\n)*--overwrite"):
        surgeon.apply(merge(paths), out)
    bad = random_tensors(SHAPES, 2)
    bad["model.layers.7.w"][3, 4] = float("nan")
    broken = write_checkpoint(tmp_path / "bad", bad)
    with pytest.raises(surgeon.RunError, match=r"model.layers.7.w in .*bad.* holds NaN"):
        surgeon.apply(merge([paths[0], paths[1], broken]), out, overwrite=True)
    assert digests(out) == before
    assert not hidden(out).exists()
    surgeon.apply(merge(paths), out, overwrite=True)
    assert weights(out) != {name: value for name, value in before.items() if name.startswith("model")}
    assert not hidden(out).exists()


def test_an_output_in_or_around_an_input_is_refused(paths: list[Path], tmp_path: Path):
    before = [digests(path) for path in paths]
    for out in (paths[0], paths[1] / "inside", paths[0].parent):
        with pytest.raises(surgeon.OutputError, match="or inside it"):
            surgeon.apply(merge(paths), out, overwrite=True)
    assert [digests(path) for path in paths] == before
    assert not list(paths[0].parent.glob(".*"))


def test_a_worker_that_fails_stops_the_others_and_is_told_by_tensor(paths: list[Path], tmp_path: Path, monkeypatch):
    started = []

    def fail(self, target, reader):
        started.append(target.name)
        if len(started) == 2:
            raise RuntimeError("out of luck")
        return compute(self, target, reader)

    compute = work.Worker._compute
    monkeypatch.setattr(work.Worker, "_compute", fail)
    with pytest.raises(surgeon.RunError, match=r"model.layers.\d+.w \(ties\): out of luck"):
        surgeon.apply(merge(paths), tmp_path / "out", threads=2)
    assert len(started) < len(SHAPES)
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_changes_is_not_resumed_over(paths: list[Path], tmp_path: Path, monkeypatch):
    held = random_tensors(SHAPES, 2)
    mine = write_checkpoint(tmp_path / "mine", held)
    out = tmp_path / "out"
    monkeypatch.setattr("surgeon.engine.workspace.Workspace.commit", lambda self: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        surgeon.apply(merge([*paths[:2], mine]), out)
    monkeypatch.undo()
    write_checkpoint(tmp_path / "mine", {name: value + 1 for name, value in held.items()})
    with pytest.raises(surgeon.OutputError, match="another recipe, version or inputs"):
        surgeon.apply(merge([*paths[:2], mine]), out, resume=True)
    surgeon.apply(merge([*paths[:2], mine]), out)
    surgeon.apply(merge([*paths[:2], mine]), tmp_path / "expected")
    assert weights(out) == weights(tmp_path / "expected")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 3 MB; the output has 3.7 MB."""
    with disks.small_disk(tmp_path / "disk", "3m") as disk:
        yield disk


def test_a_full_disk_is_told_and_the_next_try_is_not_blocked(small_disk: Path, paths: list[Path], tmp_path: Path):
    before = [digests(path) for path in paths]
    for _ in range(2):
        with pytest.raises(surgeon.RunError, match=r"is full(.|\n)*next: free "):
            surgeon.apply(merge(paths), small_disk / "out")
        assert not (small_disk / "out").exists()
    assert [digests(path) for path in paths] == before
    surgeon.apply(merge(paths), small_disk / "out", dtype="bfloat16")
    assert [path.name for path in small_disk.iterdir()] == ["out"]


def test_a_read_only_folder_is_refused(small_disk: Path, paths: list[Path]):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(surgeon.OutputError, match="Read-only"):
        surgeon.apply(merge(paths), small_disk / "out")


def test_infinity_of_our_own_making_is_told_apart_from_one_in_an_input(tmp_path: Path):
    held = {"model.layers.0.w": torch.full((40, 40), 2.0e38)}
    a, b = (surgeon.open(write_checkpoint(tmp_path / name, held)) for name in "ab")
    with pytest.raises(surgeon.RunError, match=r"model.layers.0.w \(combine\) overflows"):
        surgeon.apply(a + 3 * b - 3 * surgeon.open(write_checkpoint(tmp_path / "c", {"model.layers.0.w": -held[
            "model.layers.0.w"]})), tmp_path / "out")  # fmt: skip
    small = {"model.layers.0.w": torch.full((40, 40), 70_000.0)}
    d = surgeon.open(write_checkpoint(tmp_path / "d", small))
    with pytest.raises(surgeon.RunError, match=r"beyond float16's range"):
        surgeon.apply(d, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    surgeon.apply(d, tmp_path / "out", dtype="float16", allow_nan=True)


@pytest.mark.parametrize("mistyped", [".", "notes.txt"])
def test_only_a_checkpoint_is_overwritten(paths: list[Path], tmp_path: Path, mistyped: str, monkeypatch):
    """A mistyped OUT must not cost a home or a project folder."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "notes.txt").write_text("precious")
    monkeypatch.chdir(home)
    with pytest.raises(surgeon.OutputError, match="no checkpoint"):
        surgeon.apply(merge(paths), mistyped, overwrite=True)
    assert (home / "notes.txt").read_text() == "precious"
    assert os.listdir(tmp_path) == ["home"]
