"""Loading recipes: read the file, apply overrides, translate mergekit's YAML, build the expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgeon.errors import Fault, Origin, RecipeError
from surgeon.recipe.document import Faults, Node, kind
from surgeon.recipe.entries import Entry
from surgeon.recipe.graph import Definition, read_graph
from surgeon.recipe.mergekit import translate
from surgeon.recipe.names import absolute
from surgeon.recipe.overrides import apply_overrides
from surgeon.recipe.shape import read_shape
from surgeon.recipe.yaml_text import LARGEST, read_documents
from surgeon.space.expr import DirectionRef, Expr, Model
from surgeon.space.output import Output, Recipe


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, what its reader should know of how it was read, and what `surgeon tune` is asked in it by key."""

    recipe: Recipe
    notes: tuple[str, ...] = ()
    tune: Mapping[str, Any] = field(default_factory=dict)


def load_recipe(path: Path | str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in a file, native or mergekit's. RecipeError with every fault found."""
    return load(path, overrides).recipe


def load(path: Path | str, overrides: Mapping[str, str] | None = None) -> LoadedRecipe:
    """The same with notes."""
    file = Path(path)
    return parse(_text(file), file=str(path), folder=file.parent, overrides=overrides)


def read_tree(file: Path, overrides: Mapping[str, str], faults: Faults) -> Node:
    """The tree of a recipe's (last) document with overrides in place; their faults are noted."""
    return apply_overrides(_documents(_text(file), str(file))[-1], overrides, faults)


def parse(text: str, *, file: str, folder: Path, overrides: Mapping[str, str] | None = None) -> LoadedRecipe:
    """The recipe a text spells; `file` is how errors call it, `folder` what relative paths start from."""
    faults, notes = Faults(), list[str]()
    documents = _documents(text, file)
    *before, root = documents
    root = apply_overrides(root, overrides or {}, faults)
    if all("merge_method" in each.mapping for each in (*before, root)):
        root = translate((*before, root), faults, notes)
    elif before:
        faults.add("a recipe is one YAML document; a second one starts here", documents[1])
        faults.check()
    recipe, shape = _build(root, folder, faults)
    tune = _tune(root, shape, folder)
    notes += ["tune: is what `surgeon tune` reads; here the numbers are built as they stand"] * bool(tune)
    return LoadedRecipe(recipe, tuple(notes), tune)


def _documents(text: str, file: str) -> list[Node]:
    """The YAML documents of a text, all of them mappings."""
    documents = list(read_documents(text, file))
    for root in documents:
        if not isinstance(root.value, Mapping):
            hint = "it starts with surgeon: 1, or is mergekit's YAML with a merge_method"
            raise RecipeError([Fault(f"a recipe is a mapping, not {kind(root)}", root.at, hint)])
    return documents


def _tune(root: Node, shape: Any, folder: Path) -> Mapping[str, Any]:
    """What is given under `tune:`, files by absolute paths."""
    node = root.get("tune")
    if node is None or shape.tune is None:
        return {}
    found = {key: getattr(shape.tune, key) for key in shape.tune.model_fields_set if node.get(key) is not None}
    where = {True: Path.cwd(), False: folder}
    if neutral := node.get("neutral"):
        found["neutral"] = absolute(neutral.text, where[neutral.from_user])
    if prompts := node.get("prompts"):
        found["prompts"] = {name: absolute(file.text, where[file.from_user]) for name, file in prompts.mapping.items()}
    return found


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(4 * LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeError([Fault(f"cannot read the recipe {file}: {reason}")]) from None
    if len(data) > 4 * LARGEST:
        raise RecipeError([Fault("this file is too large to be a recipe", Origin(str(file), 1))])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError([Fault("a recipe is text in UTF-8; this is not", Origin(str(file), line))]) from None


def _build(root: Node, folder: Path, faults: Faults) -> tuple[Recipe, Any]:
    """The recipe a native tree means, and its shape; RecipeError with all its faults, those noted before included.

    What is faulty goes on as a model called ?NAME, so that the faults of what is built on it are found too.
    """
    shape = read_shape(root, faults)
    graph = read_graph(root, faults)
    points: dict[str, Expr] = {}
    directions: dict[str, DirectionRef] = {}
    for name in graph.order:
        definition = graph.definitions[name]
        known = points | {use.name: Model(f"?{use.name}") for use in definition.uses if use.name not in points}
        along = directions | {use.name: DirectionRef("?") for use in definition.uses if use.name not in directions}
        entry = Entry(name, definition.node, _read(shape, definition), known, along, graph.definitions, folder)
        built = definition.kind.build(entry, faults) if definition.kind else None
        if isinstance(built, DirectionRef):
            directions[name] = built
        else:
            points[name] = built or Model(f"?{name}")
    faults.check()
    output = root.get("output")
    return Recipe(points[graph.result], _output(output, shape.output, points) if output else Output()), shape


def _read(shape: Any, definition: Definition) -> Any:
    """The entry as its shape was read, or None."""
    return (getattr(shape, definition.section) or {}).get(definition.name) if shape else None


def _output(node: Node, read: Any, built: Mapping[str, Expr]) -> Output:
    files_from = built[read.files_from] if read.files_from else None
    rounding = read.rounding or Output.rounding
    drop, template = tuple(read.drop or ()), read.chat_template
    full = bool(read.dequantize)
    return Output(read.dtype, read.shard_size, files_from, rounding, drop, template, full, origin=node.start)
