"""Steps that edit or reshape: the names they use, and the expression they mean."""

from __future__ import annotations

from surgeon.recipe.document import Faults, Node
from surgeon.recipe.entries import Entry, Kind, Use, used
from surgeon.recipe.part_settings import read_part_setting
from surgeon.space.expr import Edit, Part, Reshape, settings
from surgeon.space.parts import base_of
from surgeon.space.registry import edits, reshapes


def edit_uses(node: Node) -> tuple[Use, ...] | None:
    """What is edited, and the directions along which."""
    directions, method = node.get("directions"), edits().get(node.mapping["edit"].text)
    texts = [item for item in directions.items if isinstance(item.value, str)] if directions else []
    along = tuple(Use(item.text, item.at, direction=True) for item in texts)
    of = used(node, "of")
    if not of or (not along and (method is None or method.needs_directions)):
        return None
    return (*of, *along)


def build_edit(entry: Entry, faults: Faults) -> Edit | None:
    """A registered edit of a model or step; all that can be wrong with one is wrong in its shape."""
    read = entry.read
    if read is None:
        return None
    return Edit(
        edit=read.edit,
        of=entry.known[read.of],
        directions=tuple(entry.directions[name] for name in getattr(read, "directions", ())),
        settings=entry.settings(edits()[read.edit].parameters, read, entry.node),
        layers=read.layers,
        writers=read.writers or (),
        tied=read.tied or Edit.tied,
        allow_partial=bool(read.allow_partial),
        name=entry.name,
        origin=entry.node.start,
    )


def reshape_uses(node: Node) -> tuple[Use, ...] | None:
    """What is reshaped: ``of``, the models ``with`` it, or the models of ``parts``."""
    parts = node.get("parts")
    taken = [use for part in parts.items for use in used(part, "of")] if parts else []
    return (*used(node, "of"), *(Use(name, item.at) for name, item in node.named("with")), *taken) or None


def build_reshape(entry: Entry, faults: Faults) -> Reshape | None:
    """A registered reshape of models or steps; all that can be wrong with one is wrong in its shape."""
    read = entry.read
    if read is None:
        return None
    reshaping = reshapes()[read.reshape]
    if "parts" in reshaping.operands:
        parts = tuple(Part(entry.known[part.of], part.layers, part.targets) for part in read.parts)
    else:
        parts = tuple(Part(entry.known[name]) for name in (read.of, *(getattr(read, "with_", None) or ())))
    given = entry.settings(reshaping.parameters, read, entry.node)
    numbers = [[part.of for part in parts].index(part.of) for part in parts]
    names = {use.name: numbers[number] for number, use in enumerate(reshape_uses(entry.node) or ())}
    chosen = {
        name: read_part_setting(
            reshaping.parameters[name], value, names, base_of(numbers), entry.node.mapping[name], faults
        )
        for name, value in given
    }
    return Reshape(read.reshape, parts, settings(chosen), name=entry.name, origin=entry.node.start)


EDIT = Kind(edit_uses, build_edit)
RESHAPE = Kind(reshape_uses, build_reshape)
