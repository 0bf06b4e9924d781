"""What `import surgeon` offers, and what it costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import surgeon

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "accelerate", "huggingface_hub", "numpy")
ON_THE_PATH = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'cli')!r}]"


def loaded_by(code):
    """Which heavy packages a fresh interpreter holds after running the code."""
    report = f"print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    script = f"{ON_THE_PATH}\ntry:\n    {code}\nfinally:\n    {report}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stderr.split()


@pytest.mark.parametrize("name", surgeon.__all__)
def test_every_name_is_there(name):
    assert getattr(surgeon, name) is not None


def test_all_is_what_is_public():
    here = {name for name in vars(surgeon) if not name.startswith("_")}
    modules = {path.stem for path in (ROOT / "surgeon").iterdir() if not path.name.startswith("_")}
    helpers = {"annotations", "import_module", "TYPE_CHECKING", "Any"}
    assert here - modules - helpers | set(surgeon._HOMES) | {"__version__"} == set(surgeon.__all__)
    assert dir(surgeon) == sorted(surgeon.__all__)


def test_type_checkers_see_the_same_homes():
    tree = ast.parse((ROOT / "surgeon/__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert seen == surgeon._HOMES


def test_no_folder_bears_a_public_name():
    assert not {path.stem for path in (ROOT / "surgeon").iterdir()} & set(surgeon.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'aply'"):
        _ = surgeon.aply


def test_importing_surgeon_loads_nothing_heavy():
    assert loaded_by("import surgeon") == []


@pytest.mark.parametrize("arguments", [["--help"], ["apply", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments):
    start = f"sys.argv = ['surgeon', *{arguments!r}]; from surgeon_cli.main import run"
    assert loaded_by(f"{start}\n    try: run()\n    except SystemExit as end: assert not end.code") == []
