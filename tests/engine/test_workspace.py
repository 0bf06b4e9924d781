"""The workspace: killed at any moment, OUT is what it was or complete; one build at a time; nothing left over."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import surgeon.engine.workspace as workspace_module
from surgeon.engine.journal import Record
from surgeon.engine.workspace import Workspace
from surgeon.errors import OutputError, RunError, SurgeonError
from tests.support import disks

RECORD = Record("a", "digest", {"base/a": "other"})

#: A build that dies by SIGKILL before its n-th change of the file system. Arguments: OUT, n, overwrite, exchange.
KILLED = """
import os, signal, sys
from pathlib import Path
import surgeon.engine.workspace as workspace
from surgeon.engine.journal import Record

out, left, overwrite, exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True", sys.argv[4] == "True"

def deadly(call):
    def wrapped(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return wrapped

for name in ("mkdir", "rename", "unlink", "rmdir", "fsync", "ftruncate", "pwrite", "open", "close"):
    setattr(os, name, deadly(getattr(os, name)))
workspace._exchange = deadly(workspace._exchange) if exchange else lambda first, second: False
with workspace.Workspace(out, "key", overwrite=overwrite) as work:
    if "a" not in work.journal.read():
        (work.folder / "weights").write_text("new")
        work.journal.append([Record("a", "digest", {})])
    work.commit()
"""


def build(out: Path, text: str = "new", **settings) -> Workspace:
    """A whole build and commit."""
    with Workspace(out, "key", **settings) as work:
        (work.folder / "weights").write_text(text)
        work.commit()
    return work


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def child(*arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("overwrite", "exchange"), [(False, True), (True, True), (True, False)])
def test_killed_before_any_system_call_out_is_old_or_new_and_the_next_run_ends_it(
    tmp_path: Path, overwrite: bool, exchange: bool
):
    kills = 0
    while True:
        home = tmp_path / str(kills)
        out, hidden = home / "out", home / ".out.surgeon"
        home.mkdir()
        if overwrite:
            out.mkdir()
            (out / "weights").write_text("old")
        done = child("-c", KILLED, out, kills, overwrite, exchange)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        if out.exists():
            assert (out / "weights").read_text() in (("old", "new") if overwrite else ("new",))
        elif overwrite:
            assert (hidden / "old/weights").read_text() == "old"
            assert (hidden / "data/weights").read_text() == "new"
        if not overwrite and out.exists():
            with pytest.raises(OutputError, match="exists"):
                Workspace(out, "key")
        else:
            build(out, overwrite=overwrite)
        assert names(home) == ["out", "out/weights"], kills
        assert (out / "weights").read_text() == "new"
        if done.returncode == 0:
            break
        kills += 1
    assert kills > 20


def test_a_swap_cut_in_two_is_undone_by_the_next_run_whatever_it_wants(tmp_path: Path):
    out, hidden = tmp_path / "out", tmp_path / ".out.surgeon"
    build(out, "old")
    work = Workspace(out, "key", overwrite=True)
    (work.folder / "weights").write_text("new")
    (hidden / "commit").write_text(f"{work.folder.stat().st_ino}\n")
    out.rename(hidden / "old")
    work.close()
    with pytest.raises(OutputError, match="exists"):
        Workspace(out, "key")
    assert (out / "weights").read_text() == "old"
    with Workspace(out, "key", overwrite=True) as work:
        assert work.resumed
        assert (work.folder / "weights").read_text() == "new"
        work.commit()
    assert names(tmp_path) == ["out", "out/weights"]


def test_something_else_in_the_place_of_a_cut_swap_loses_neither(tmp_path: Path):
    out, hidden = tmp_path / "out", tmp_path / ".out.surgeon"
    build(out, "old")
    work = Workspace(out, "key", overwrite=True)
    (hidden / "commit").write_text(f"{work.folder.stat().st_ino}\n")
    out.rename(hidden / "old")
    work.close()
    out.write_text("a stranger")
    with pytest.raises(OutputError, match=r"cut short(.|\n)*\.out\.surgeon/old"):
        Workspace(out, "key", overwrite=True)
    assert out.read_text() == "a stranger"
    assert (hidden / "old/weights").read_text() == "old"


def test_a_failing_second_rename_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"
    build(out, "old")
    monkeypatch.setattr(workspace_module, "_exchange", lambda first, second: False)
    rename = os.rename

    def fails_once(source: Path, target: Path) -> None:
        if Path(source).name == "data":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_once)
    with pytest.raises(RunError, match="Input/output"):
        build(out, overwrite=True)
    assert (out / "weights").read_text() == "old"
    monkeypatch.undo()
    with Workspace(out, "key", overwrite=True) as work:
        assert work.resumed
        work.discard()
    assert names(tmp_path) == ["out", "out/weights"]


def test_a_new_out_is_made_with_its_parents_and_nothing_beside_it(tmp_path: Path):
    build(tmp_path / "a/b/out")
    assert names(tmp_path) == ["a", "a/b", "a/b/out", "a/b/out/weights"]


def test_discard_and_refusal_leave_nothing_not_even_parents(tmp_path: Path):
    with Workspace(tmp_path / "a/b/out", "key") as work:
        (work.folder / "weights").write_text("new")
        work.discard()
    with pytest.raises(OutputError, match="does not exist"):
        Workspace(tmp_path / "a/b/out", "key", resume=True)
    assert names(tmp_path) == []


def test_what_exists_is_refused_and_an_empty_folder_is_not(tmp_path: Path):
    for name in ("file", "folder", "empty"):
        (tmp_path / name).mkdir() if name != "file" else (tmp_path / name).write_text("x")
    (tmp_path / "folder/x").write_text("x")
    before = names(tmp_path)
    for name in ("file", "folder"):
        with pytest.raises(OutputError, match=r"exists(.|\n)*--overwrite"):
            Workspace(tmp_path / name, "key")
    assert names(tmp_path) == before
    build(tmp_path / "empty")
    assert (tmp_path / "empty/weights").read_text() == "new"


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_overwrite_lets_the_old_one_stand_until_the_end(
    tmp_path: Path, kind: str, exchange: bool, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    old = tmp_path / "elsewhere" if kind == "link" else out
    if kind == "link":
        out.symlink_to(old)
    if kind == "file":
        out.write_text("old")
    else:
        build(old, "old")
    if not exchange:
        monkeypatch.setattr(workspace_module, "_exchange", lambda first, second: False)
    with Workspace(out, "key", overwrite=True) as work:
        (work.folder / "weights").write_text("new")
        assert (out if kind == "file" else out / "weights").read_text() == "old"
        work.commit()
    assert (out / "weights").read_text() == "new"
    assert out.is_symlink() == (kind == "link")
    assert len(list(tmp_path.iterdir())) == (2 if kind == "link" else 1)


def test_an_out_that_appears_meanwhile_is_not_touched(tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="exists"), Workspace(out, "key") as work:
        out.mkdir()
        (out / "x").write_text("theirs")
        work.commit()
    assert names(out) == ["x"]
    (out / "x").unlink()
    with Workspace(out, "key") as work:
        assert work.resumed


def interrupted(out: Path, key: str = "key") -> None:
    with Workspace(out, key) as work:
        (work.folder / "weights").write_text("half")
        work.journal.append([RECORD])


def test_an_interrupted_build_is_resumed_by_its_own_key_only(tmp_path: Path):
    out = tmp_path / "out"
    interrupted(out)
    for resume in (None, True):
        with Workspace(out, "key", resume=resume) as work:
            assert work.resumed
            assert work.journal.read() == {"a": RECORD}
            assert (work.folder / "weights").read_text() == "half"
    with pytest.raises(OutputError, match="another recipe"):
        Workspace(out, "other", resume=True)
    with Workspace(out, "key") as work:
        assert work.resumed
    with Workspace(out, "other") as work:
        assert not work.resumed
        assert work.journal.key == "other"
        assert work.journal.read() == {}
        assert names(work.folder) == []


def test_fresh_begins_again(tmp_path: Path):
    interrupted(tmp_path / "out")
    with Workspace(tmp_path / "out", "key", resume=False) as work:
        assert not work.resumed
        assert names(work.folder) == []
        assert work.journal.read() == {}


def test_a_refused_overwrite_keeps_the_unfinished_build(tmp_path: Path):
    out = tmp_path / "out"
    build(out, "old")
    with Workspace(out, "key", overwrite=True) as work:
        work.journal.append([RECORD])
    with pytest.raises(OutputError, match="exists"):
        Workspace(out, "key")
    with Workspace(out, "key", overwrite=True) as work:
        assert work.resumed


def test_a_second_build_is_refused_with_the_pid_of_the_first(tmp_path: Path):
    out = tmp_path / "out"
    program = (
        "import sys; from surgeon.engine.workspace import Workspace; from pathlib import Path;"
        "Workspace(Path(sys.argv[1]), 'key')"
    )
    with Workspace(out, "key") as work:
        done = child("-c", program, out)
        assert f"OutputError: process {os.getpid()} is building {out}" in done.stderr
        (work.folder / "weights").write_text("new")
        work.commit()
    assert names(tmp_path) == ["out", "out/weights"]


RACE = """
import os, sys
from pathlib import Path
from surgeon.engine.workspace import Workspace
from surgeon.errors import OutputError
out = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
won = 0
for turn in range(300):
    try:
        with Workspace(out, "key", resume=False) as work:
            if os.listdir(work.folder):
                sys.exit("two builds in one folder")
            (work.folder / str(os.getpid())).write_text("x")
            if os.listdir(work.folder) != [str(os.getpid())]:
                sys.exit("two builds in one folder")
            work.discard()
            won += 1
    except OutputError as error:
        if "is building" not in str(error):
            raise
print(won, flush=True)
"""


def test_of_racing_processes_one_holds_the_lock_and_the_others_are_refused(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", RACE, str(tmp_path / "a/out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen(command, env=environment, **pipes) for _ in range(3)]
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("\n")
        racer.stdin.flush()
    ends = [racer.communicate() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], ends
    assert sum(int(out) for out, _ in ends) > 0
    # The parent was made by one and in use by another: an empty folder may stay.
    assert names(tmp_path) in ([], ["a"])


def test_a_lock_that_its_holder_removed_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lock, real, calls = tmp_path / ".out.surgeon/lock", fcntl.flock, []

    def removed_at_first(fd: int, how: int) -> None:
        if not calls:
            lock.unlink()
        calls.append(how)
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", removed_at_first)
    with Workspace(tmp_path / "out", "key"), pytest.raises(OutputError, match=f"process {os.getpid()} is building"):
        Workspace(tmp_path / "out", "key")
    assert len(calls) == 3


def test_the_lock_of_a_killed_process_does_not_block(tmp_path: Path):
    program = (
        "import os, sys, signal; from surgeon.engine.workspace import Workspace; from pathlib import Path;"
        "work = Workspace(Path(sys.argv[1]), 'key'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert child("-c", program, tmp_path / "out").returncode == -signal.SIGKILL
    with Workspace(tmp_path / "out", "key") as work:
        assert work.resumed


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "models/base"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    return folder


@pytest.mark.parametrize("out", ["models/base", "models/base/out", "models", ".", "models/base/model.safetensors"])
@pytest.mark.parametrize("through", ["name", "link", "parent link", "dots"])
def test_an_output_that_is_in_or_around_an_input_is_refused(tmp_path: Path, model: Path, out: str, through: str):
    (tmp_path / "models-link").symlink_to(tmp_path / "models")
    given = {
        "name": model,
        "link": tmp_path / "base-link",
        "parent link": tmp_path / "models-link/base",
        "dots": tmp_path / "models/../models/base",
    }[through]
    if through == "link":
        given.symlink_to(model)
    before = names(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="input"):
            Workspace(tmp_path / out, "key", overwrite=overwrite, inputs=[given])
    assert names(tmp_path) == before
    assert (model / "model.safetensors").read_text() == "weights"


def test_an_output_that_holds_what_an_input_links_to_is_refused(tmp_path: Path, model: Path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(model / "model.safetensors")
    with pytest.raises(OutputError, match="input"):
        Workspace(model, "key", overwrite=True, inputs=[snapshot])
    with pytest.raises(OutputError, match="input"):
        Workspace(model, "key", overwrite=True, inputs=[model / "model.safetensors"])


def test_an_output_that_holds_the_link_an_input_is_named_by_is_refused(tmp_path: Path, model: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/link").symlink_to(model)
    with pytest.raises(OutputError, match="input"):
        Workspace(tmp_path / "out", "key", overwrite=True, inputs=[tmp_path / "out/link"])


def test_neighbours_of_inputs_are_free(tmp_path: Path, model: Path):
    inputs = [model, tmp_path / "gone"]
    build(tmp_path / "models/base2", inputs=inputs)
    build(tmp_path / "models/base2", inputs=inputs, overwrite=True)
    build(tmp_path / "models/out", inputs=[tmp_path / "models/base/model.safetensors"])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 kB."""
    with disks.small_disk(tmp_path / "disk", "64k") as disk:
        yield disk


def test_a_read_only_parent_is_named_and_nothing_is_left(disk: Path):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for out in (disk / "out", disk / "a/b/out"):
        with pytest.raises(OutputError, match=f"{disk}.*Read-only"):
            Workspace(out, "key")
    assert names(disk) == []


def test_a_mount_point_is_refused(disk: Path):
    with pytest.raises(OutputError, match=r"mount point(.|\n)*disk/model"):
        Workspace(disk, "key")
    assert names(disk.parent) == ["disk"]


def test_a_full_disk_is_told_and_does_not_block_the_next_try(disk: Path):
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(SurgeonError, match=r"is full(.|\n)*free"):
        Workspace(disk / "out", "key")
    ballast.unlink()
    build(disk / "out")
    assert names(disk) == ["out", "out/weights"]
