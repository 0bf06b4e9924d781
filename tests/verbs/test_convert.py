"""`convert`: mergekit's YAML as a native recipe that means the same."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import surgeon
from surgeon_cli.main import app

HERE = Path(__file__).parents[1] / "conformance"
RECIPES = sorted(path.stem for path in (HERE / "expected").glob("*.safetensors"))


@pytest.fixture(autouse=True)
def inside(monkeypatch):
    monkeypatch.chdir(HERE)


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_printed_reads_back_equal(name, tmp_path):
    """Notes are comments; the working directory counts for mergekit's file, and not for the native one."""
    printed = CliRunner().invoke(app, ["convert", f"configs/{name}.yml"])
    (tmp_path / "native.yaml").write_text(printed.output, encoding="utf-8")
    assert surgeon.load_recipe(tmp_path / "native.yaml") == surgeon.load_recipe(f"configs/{name}.yml")


def test_it_is_written_where_nothing_is(tmp_path):
    converted = surgeon.convert("configs/ties.yml", tmp_path / "native.yaml")
    assert (tmp_path / "native.yaml").read_text(encoding="utf-8") == converted.explain() + "\n"
    assert converted.notes and all(f"# {note[:60]}" in converted.explain() for note in converted.notes)
    with pytest.raises(surgeon.OutputError, match="exists already"):
        surgeon.convert("configs/ties.yml", tmp_path / "native.yaml")
    with pytest.raises(surgeon.OutputError, match="cannot write"):
        surgeon.convert("configs/ties.yml", tmp_path / "no" / "native.yaml")
