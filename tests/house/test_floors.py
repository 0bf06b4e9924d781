"""The floors of pyproject.toml, and what the linter does not see: who imports the root `surgeon`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSIDE = sorted((ROOT / "surgeon").rglob("*.py"))
COMMAND_LINE = sorted((ROOT / "cli").rglob("*.py"))


def imported(path):
    """(module, name) of every import of a file; name is None for `import module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def test_modules_import_from_lower_floors_only():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = ['.', 'cli']; {code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", INSIDE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_inside_imports_the_root(path):
    assert not [name for module, name in imported(path) if module == "surgeon"]
    assert not [module for module, _ in imported(path) if module.startswith((".", "surgeon_cli"))]


@pytest.mark.parametrize("path", COMMAND_LINE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_command_line_uses_public_names_only(path):
    import surgeon

    for module, name in imported(path):
        if module == "surgeon":
            assert name is None or name in surgeon.__all__
        else:
            assert not module.startswith(("surgeon.", ".")), f"{module} is not public"


@pytest.mark.parametrize("path", COMMAND_LINE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_command_line_asks_surgeon_for_public_names_only(path):
    import surgeon

    tree = ast.parse(path.read_text(encoding="utf-8"))
    asked = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "surgeon"
    }
    assert asked <= set(surgeon.__all__)
