"""`list_recipes` and `copy_recipe`: working recipes, to read and to own."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from surgeon.errors import OutputError, RefusedError, nearest

#: What the first line of every recipe shipped names, so that editors complete and check it.
SCHEMA = "recipe.schema.json"


@dataclass(frozen=True)
class Recipes:
    """The recipes shipped, by name."""

    paths: dict[str, Path]

    def explain(self) -> str:
        """One line a recipe: its name and what its first comment says."""
        width = max(map(len, self.paths), default=0)
        return "\n".join(f"{name:<{width}}  {_title(path)}" for name, path in self.paths.items())

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
    pairs = [(source, Path(destination) / source.name)]
    pairs += [(source.parent / part, Path(destination) / part) for part in sorted(set(_companions(source)))]
    pairs = [pair for pair in pairs if pair[0] == source or not _same(*pair)]
    for _, target in pairs:
        if target.exists():
            raise OutputError(f"{target} exists already", hint="copy into another folder, or move it away")
    for original, target in pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        if original.is_dir():
            shutil.copytree(original, target)
        else:
            shutil.copyfile(original, target)
    return [target for _, target in pairs]


def recipes_folder() -> Path:
    """Where the recipes lie: beside the command line in an installed package, at the top of a checkout."""
    above = Path(__file__).parents[2]
    installed = above / "surgeon_cli" / "recipes"
    return installed if installed.is_dir() else above / "recipes"


def _title(path: Path) -> str:
    comments = (line.lstrip("# ").rstrip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#")
    return next((line for line in comments if line and not line.startswith("yaml-language-server")), "")


def _same(original: Path, copy: Path) -> bool:
    """Whether a copy has all that the original has."""
    files = [path for path in original.rglob("*") if path.is_file()] if original.is_dir() else [original]
    copies = [copy / path.relative_to(original) for path in files]
    return all(b.is_file() and filecmp.cmp(a, b, shallow=False) for a, b in zip(files, copies, strict=True))


def _companions(recipe: Path) -> Iterator[str]:
    """Paths below the recipe's own folder that it names and that are there; its schema, for editors, among them."""
    if (recipe.parent / SCHEMA).is_file():
        yield SCHEMA
    for text in _strings(YAML(typ="safe", pure=True).load(recipe.read_text(encoding="utf-8"))):
        path = text.split("+")[0].strip()
        if path.startswith("./") and ".." not in Path(path).parts and (recipe.parent / path).exists():
            yield path.removeprefix("./").rstrip("/")


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _strings(child)
