"""Loading recipes: read the file, apply overrides, translate mergekit's YAML, build the expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from surgeon.errors import Fault, Origin, RecipeError
from surgeon.recipe.document import kind
from surgeon.recipe.faults import Faults
from surgeon.recipe.mergekit import translate
from surgeon.recipe.native import read_native
from surgeon.recipe.overrides import apply_overrides
from surgeon.recipe.yaml_text import LARGEST, read_yaml
from surgeon.space.output import Recipe


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, and what its reader should know about the translation of mergekit's YAML."""

    recipe: Recipe
    notes: tuple[str, ...] = ()


def load(path: Path | str, overrides: Mapping[str, str] | None = None) -> LoadedRecipe:
    """The recipe in a file, native or mergekit's, with notes. RecipeError with every fault found."""
    file = Path(path)
    return parse(_text(file), file=str(path), folder=file.parent, overrides=overrides)


def load_recipe(path: Path | str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in a file, native or mergekit's. RecipeError with every fault found."""
    return load(path, overrides).recipe


def parse_recipe(text: str, *, file: str, folder: Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe a text spells; `file` is how errors call it, `folder` what relative paths start from."""
    return parse(text, file=file, folder=folder, overrides=overrides).recipe


def parse(text: str, *, file: str, folder: Path, overrides: Mapping[str, str] | None = None) -> LoadedRecipe:
    """The recipe a text spells, with notes."""
    root = read_yaml(text, file)
    if not isinstance(root.value, Mapping):
        hint = "it starts with surgeon: 1, or is mergekit's YAML with a merge_method"
        raise RecipeError([Fault(f"a recipe is a mapping, not {kind(root)}", root.at, hint)])
    faults = Faults()
    root = apply_overrides(root, overrides or {}, faults)
    notes: list[str] = []
    if "merge_method" in root.mapping:
        root = translate(root, faults, notes)
    return LoadedRecipe(read_native(root, folder, faults), tuple(notes))


def _text(file: Path) -> str:
    origin = Origin(str(file), 1)
    try:
        with file.open("rb") as stream:
            data = stream.read(4 * LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeError([Fault(f"cannot read the recipe {file}: {reason}")]) from None
    if len(data) > 4 * LARGEST:
        raise RecipeError([Fault("this file is too large to be a recipe", origin)])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError([Fault("a recipe is text in UTF-8; this is not", Origin(str(file), line))]) from None
