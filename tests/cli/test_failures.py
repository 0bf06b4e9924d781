"""How the command ends when something is wrong: one clear message, the right exit code, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import surgeon
from surgeon import Fault, Origin
from surgeon_cli import failures, installation, main

ROOT = Path(__file__).parents[2]


def run(monkeypatch, *arguments):
    """The exit code of `surgeon ARGUMENTS` in this process."""
    monkeypatch.setattr(sys, "argv", ["surgeon", *arguments])
    monkeypatch.setattr(installation, "check", lambda: None)
    with pytest.raises(SystemExit) as end:
        main.run()
    return end.value.code or 0


def fresh(*arguments, path=(), **settings):
    """`surgeon ARGUMENTS` in a fresh process."""
    places = os.pathsep.join(map(str, [*path, ROOT, ROOT / "cli"]))
    return subprocess.run(
        [sys.executable, "-m", "surgeon_cli", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env=os.environ | {"PYTHONPATH": places} | settings,
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (surgeon.RunError("the disk is full", hint="free 3 GB"), 1),
        (surgeon.MismatchError("shapes differ"), 2),
        (surgeon.VerificationError("a tensor differs"), 3),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code):
    def fail(model):
        raise error

    monkeypatch.setattr(surgeon, "show", fail)
    assert run(monkeypatch, "show", "model") == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"error: {error.message}\n")
    assert told.err.splitlines()[-1].startswith("  next: ")
    assert error.hint in told.err
    assert "Traceback" not in told.err


def test_every_error_ends_with_the_next_thing_to_do(capsys):
    kinds = [kind for kind in vars(surgeon.errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, surgeon.SurgeonError):
            failures.report(kind([Fault("wrong")]) if kind is surgeon.RecipeError else kind("wrong"))
            assert capsys.readouterr().err.splitlines()[-1].removeprefix("  next: ").strip()


def test_a_recipe_error_shows_the_line_with_a_caret(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("surgeon: 1\nsteps:\n\tsum:\n  x: {combine: bas + math}\n", encoding="utf-8")
    spot = Origin(str(recipe), 4, 16)
    faults = [Fault("unknown name 'bas'", spot, "did you mean 'base'?"), Fault("no output", Origin(str(recipe), 3, 2))]
    failures.report(surgeon.RecipeError(faults))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"error: {recipe}:4: unknown name 'bas' (did you mean 'base'?)"
    assert lines[1] == "  4 |   x: {combine: bas + math}"
    assert lines[1][lines[2].index("^")] == "b"
    assert lines[4:6] == ["  3 | \tsum:", "      \t^"]
    assert lines[6] == "2 errors"
    assert lines[7].startswith("  next: ")


def test_a_place_that_is_no_file_is_told_without_the_line(capsys):
    failures.report(surgeon.RecipeError([Fault("not a dtype", Origin("--set output.dtype", 1))]))
    assert capsys.readouterr().err.startswith("error: --set output.dtype:1: not a dtype\n  next: ")


def test_an_unexpected_error_is_one_line_and_a_hint(monkeypatch, capsys):
    def fail(model):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(surgeon, "show", fail)
    assert run(monkeypatch, "show", "model") == 1
    told = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in told
    assert "SURGEON_DEBUG=1" in told
    monkeypatch.setenv("SURGEON_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["surgeon", "show", "model"])
    with pytest.raises(ZeroDivisionError):
        main.run()


@pytest.mark.parametrize("verb", ["apply", "verify"])
def test_an_interruption_ends_with_130_and_says_how_to_go_on(monkeypatch, capsys, verb):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(surgeon, verb, interrupt)
    assert run(monkeypatch, verb, "x", *(["-o", "out"] if verb == "apply" else [])) == 130
    told = capsys.readouterr().err
    assert "run the same command again" in told
    assert ("--fresh" in told) == (verb == "apply")


def test_the_exit_code_of_a_verdict_is_the_commands(monkeypatch, capsys):
    class Verdict:
        exit_code = 4

        def explain(self):
            return "cannot tell"

    monkeypatch.setattr(surgeon, "verify", lambda out, **settings: Verdict())
    assert run(monkeypatch, "verify", "out") == 4
    assert capsys.readouterr().out == "cannot tell\n"


def test_a_users_mistake_in_a_fresh_process():
    result = fresh("show", "./nothing-here")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "nothing-here" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_stream_that_lacks_a_letter_is_no_failure():
    shown = fresh("methods", "linear", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert shown.returncode == 0
    assert shown.stdout.isascii()
    assert not fresh("methods", "linear", PYTHONIOENCODING="utf-8").stdout.isascii()


@pytest.fixture
def other_package(tmp_path):
    """A folder in which another distribution has installed a package `surgeon`."""
    about = tmp_path / "other_surgeon-1.2.dist-info"
    about.mkdir()
    (about / "RECORD").write_text("other_surgeon-1.2.dist-info/METADATA,,\nsurgeon/__init__.py,,\n", encoding="utf-8")
    return tmp_path


def test_a_mixed_installation_is_refused_by_both_names(other_package):
    result = fresh("--version", path=[other_package])
    assert result.returncode == 2
    assert "other-surgeon" in result.stderr
    assert "model-surgeon" in result.stderr
    assert "pip uninstall" in result.stderr


def test_our_own_installation_is_not(tmp_path):
    about = tmp_path / "model_surgeon-0.1.0.dist-info"
    about.mkdir()
    (about / "RECORD").write_text("surgeon/__init__.py,,\n", encoding="utf-8")
    neighbour = tmp_path / "neurosurgeon-1.0.dist-info"
    neighbour.mkdir()
    (neighbour / "RECORD").write_text("neurosurgeon/__init__.py,,\nneuro/surgeon/x.py,,\n", encoding="utf-8")
    installation.check([str(tmp_path), str(tmp_path / "missing")])
