"""`convert`: mergekit's YAML as a native recipe, which means the same."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.errors import OutputError
from surgeon.recipe import dump_recipe, load
from surgeon.recipe.dump import HEADER
from surgeon.space.output import Recipe


@dataclass(frozen=True)
class Conversion:
    """A recipe in native YAML, and what mergekit does otherwise or ignores."""

    recipe: Recipe
    text: str
    notes: tuple[str, ...]

    def explain(self) -> str:
        """The native recipe, the notes as comments before it."""
        notes = ("\n#   ".join(textwrap.wrap(note, 116)) for note in self.notes)
        return HEADER + "".join(f"# {note}\n" for note in notes) + self.text.rstrip("\n")

    def to_dict(self) -> dict[str, Any]:
        """The same as data."""
        return {"recipe": self.text, "notes": list(self.notes)}


def convert(recipe: str | Path, out: str | Path | None = None) -> Conversion:
    """The native recipe that a mergekit recipe means; loading it gives an equal one, so the same bytes.

    `out` is a file to write it to, which must not exist. Paths are written absolute. RecipeError with every fault of
    the recipe; OutputError where the file is there or cannot be written.
    """
    loaded = load(recipe)
    conversion = Conversion(loaded.recipe, dump_recipe(loaded.recipe, schema=False), loaded.notes)
    if out is not None:
        _write(Path(out), conversion.explain() + "\n")
    return conversion


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise OutputError(f"{path} exists already", hint="choose another name, or move it away") from None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
