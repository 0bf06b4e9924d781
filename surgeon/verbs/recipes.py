"""`list_recipes` and `copy_recipe`: working recipes, to read and to own."""

from __future__ import annotations

import filecmp
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.errors import OutputError, RefusedError, nearest
from surgeon.verbs._table import table

#: What a recipe names in its own folder: adapters, and the schema for editors.
_BESIDE = re.compile(r"(?<![\w./])\./[\w./-]+")


@dataclass(frozen=True)
class Recipes:
    """The recipes shipped, by name."""

    paths: dict[str, Path]

    def explain(self) -> str:
        """One line a recipe: its name and what its first comment says."""
        return "\n".join(table((name, _title(path)) for name, path in self.paths.items()))

    def to_dict(self) -> dict[str, Any]:
        """Title and path of each recipe."""
        return {name: {"title": _title(path), "path": str(path)} for name, path in self.paths.items()}


def list_recipes() -> Recipes:
    """The recipes that come with surgeon."""
    return Recipes({path.stem: path for path in sorted(recipes_folder().glob("*.yaml"))})


def copy_recipe(name: str, destination: str | Path = ".") -> list[Path]:
    """Copy a recipe, and the files beside it that it names, into a folder; the paths written.

    Nothing that is already there is overwritten; what another recipe brought along already is left as it is.
    """
    paths = list_recipes().paths
    if name not in paths:
        raise RefusedError(f"there is no recipe {name!r}", hint=nearest(name, paths))
    source = paths[name]
    named = {source.parent / path for path in _BESIDE.findall(source.read_text(encoding="utf-8"))}
    files = [file for path in sorted(named) for file in (path, *sorted(path.rglob("*"))) if file.is_file()]
    targets = {file: Path(destination) / file.relative_to(source.parent) for file in [source, *files]}
    for file, target in targets.items():
        if target.exists() and (file == source or not filecmp.cmp(file, target, shallow=False)):
            raise OutputError(f"{target} exists already", hint="copy into another folder, or move it away")
    missing = {file: target for file, target in targets.items() if not target.exists()}
    for file, target in missing.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return list(missing.values())


def recipes_folder() -> Path:
    """Where the recipes lie: beside the command line in an installed package, at the top of a checkout."""
    above = Path(__file__).parents[2]
    installed = above / "surgeon_cli" / "recipes"
    return installed if installed.is_dir() else above / "recipes"


def _title(path: Path) -> str:
    comments = (line.lstrip("# ").rstrip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    return next((line for line in comments if line and not line.startswith("yaml-language-server")), "")
