"""The wheel, the changelog, and what must not be in the repository."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from surgeon.verbs.recipes import list_recipes, recipes_folder
from surgeon.version import VERSION

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


def test_the_top_level_of_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"surgeon", "surgeon_cli"}
    assert wheel.name.startswith(f"model_surgeon-{VERSION}-")


def test_both_commands_lead_to_one_function(wheel):
    archive = zipfile.ZipFile(wheel)
    entry_points = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    assert "surgeon = surgeon_cli.main:run" in entry_points.splitlines()
    assert "model-surgeon = surgeon_cli.main:run" in entry_points.splitlines()


def test_recipes_are_found_in_the_wheel(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import surgeon; print(*surgeon.list_recipes().paths.values(), sep='\\n')"
    isolated = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
    result = subprocess.run(isolated, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = result.stdout.split()
    assert found == [str(tmp_path / "surgeon_cli" / "recipes" / path.name) for path in list_recipes().paths.values()]


def test_recipes_are_found_in_the_checkout():
    assert recipes_folder() == ROOT / "recipes"
    assert list_recipes().paths == {path.stem: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}
    assert list_recipes().paths


def test_the_changelog_begins_with_what_is_unreleased_or_with_this_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] in ("Unreleased", VERSION)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert not released or released[0] == VERSION


def test_the_version_is_written_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    assert "version" not in project


def repository_files():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in result.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_path_of_one_machine_is_in_the_repository():
    machine = re.compile(r"(?<![\w./~-])/(work|root|tmp|opt)/\w")
    found = {}
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found |= {f"{path.relative_to(ROOT)}: {match[0]}": text.count(match[0]) for match in machine.finditer(text)}
    assert found == {}
