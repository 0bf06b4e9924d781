"""Entries of `directions:`: a file, or a contrast that is measured on a model or step when the recipe runs."""

from __future__ import annotations

from surgeon.recipe.document import Faults, Node
from surgeon.recipe.entries import Entry, Kind, Use, used
from surgeon.space.expr import DirectionRef, Fit, settings
from surgeon.space.fitter import SETS
from surgeon.space.registry import fitters


def direction_uses(node: Node) -> tuple[Use, ...] | None:
    """The model that a direction is measured on."""
    if node.text or node.get("file"):
        return ()
    return used(node, "model") or None


def build_direction(entry: Entry, faults: Faults) -> DirectionRef | None:
    """A direction by its file or its fit; all that can be wrong with one is wrong in its shape."""
    node, read = entry.node, entry.read
    if read is None:
        return None
    if node.text:
        return DirectionRef(entry.path(node), "", entry.name, node.start)
    if "file" in node.mapping:
        return DirectionRef(entry.path(node.mapping["file"]), read.at or "", entry.name, node.start)
    return DirectionRef(_fit(entry), "", entry.name, node.start)


def _fit(entry: Entry) -> Fit:
    node, read = entry.node, entry.read
    files = {name: entry.path(node.mapping[name]) for name in SETS if name in node.mapping}
    positive, negative = files.pop("positive"), files.pop("negative")
    given = dict(entry.settings(fitters()[read.fit].parameters, read, node))
    return Fit(
        fitter=read.fit,
        model=entry.known[read.model],
        positive=positive,
        negative=negative,
        at=read.at or Fit.at,
        settings=settings(given | files),
        name=entry.name,
        origin=node.start,
    )


DIRECTION = Kind(direction_uses, build_direction)
