"""From an `Edit` or `Reshape` to its node: anatomy looked up, directions read, everything checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from surgeon.anatomy.describe import Anatomy, Place, describe
from surgeon.anatomy.family import Part
from surgeon.artifacts.direction import OWN, OWN_MID, Direction
from surgeon.errors import Fault, MismatchError, RecipeError, RefusedError, SurgeonError, nearest
from surgeon.planning.edits import Along, Edited, Reshaped
from surgeon.planning.prepare import stand_in
from surgeon.planning.resolve import Resolver, check_mass
from surgeon.planning.sources import Sources
from surgeon.space.edit import EditMethod
from surgeon.space.expr import DirectionRef, Edit, Expr, Model, Reshape, walk
from surgeon.space.registry import edit_named, reshape_named
from surgeon.space.reshape import Operand
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.fingerprint import fingerprint

TIED = ("untie", "both", "skip")


def edited(expr: Edit, resolver: Resolver) -> Edited:
    """The node of an edit. RefusedError, MismatchError or RecipeError says what does not fit."""
    method, inner = edit_named(expr.edit), resolver.on(None)(expr.of)
    check_mass(inner, wanted=(1,), origin=expr.origin)
    _refuse_quantised(expr, resolver.sources)
    anatomy = describe(inner.config, inner.table, str(expr.of))
    _check_words(expr, method)
    _check_unknown(expr, anatomy)
    along = tuple(_along(use, anatomy, resolver) for use in expr.directions)
    chosen = chosen_writers(expr, anatomy)
    _check_points(expr, along, chosen)
    _check_rank(along, anatomy)
    stored_head = anatomy.tied and expr.tied == "both" and anatomy.unembed in inner.table and anatomy.embed in chosen
    follows = {anatomy.unembed: anatomy.embed} if stored_head else {}
    return Edited(str(expr), inner, method, along, expr.settings, anatomy, chosen, follows)


def reshaped(expr: Reshape, resolver: Resolver) -> Reshaped:
    """The node of a reshape. RefusedError or MismatchError says what does not fit."""
    reshaping, settings = reshape_named(expr.reshape), dict(expr.settings)
    inner = tuple(resolver.on(None)(part.of) for part in expr.parts)
    for node in inner:
        check_mass(node, wanted=(1,), origin=expr.origin)
    numbers = [inner.index(node) for node in inner]
    operands = [
        Operand(node.label, node.config, part.layers, node.table, part.targets, node.sides, number, part.of.origin)
        for part, node, number in zip(expr.parts, inner, numbers, strict=True)
    ]
    drawn = reshaping.tensors(operands, settings)
    config = {**operands[0].config, **reshaping.config(operands, settings)}
    sides = inner[0].sides.changed(reshaping.files(operands, settings))
    table = {name: one.spec for name, one in drawn.items()}
    return Reshaped(str(expr), inner, drawn, table, config, sides, tuple(reshaping.notes(operands, settings)))


def _refuse_quantised(expr: Edit, sources: Sources) -> None:
    """Before its tensors are looked at, which no table of a family names."""
    for model in walk(expr.of):
        source = sources[model] if isinstance(model, Model) else None
        about = source.quantised if isinstance(source, Checkpoint) else None
        if about is not None and about.unread:
            raise MismatchError(
                f"{model} is quantised ({about.format}), and its weights are not edited: {about.unread}",
                origin=model.origin,
                hint=about.hint,
            )


def chosen_writers(expr: Edit, anatomy: Anatomy) -> Mapping[str, Place]:
    """The writers an edit changes, by `layers`, `writers` and `tied`."""
    first, end = expr.layers if expr.layers is not None else (0, anatomy.blocks)
    if expr.layers is not None and not 0 <= first < end <= anatomy.blocks:
        raise RefusedError(f"layers {first}..{end} do not lie in the model's 0..{anatomy.blocks}", origin=expr.origin)
    skipped = expr.tied == "skip" and anatomy.tied
    chosen = {
        name: place
        for name, place in anatomy.writers().items()
        if (not expr.writers or (place.part is not None and place.part.value in expr.writers))
        and (expr.layers is None or (place.block is not None and first <= place.block < end))
        and not (skipped and name == anatomy.embed)
    }
    if not chosen:
        raise RefusedError(f"{expr} edits nothing: no writer is left", origin=expr.origin)
    return chosen


def _check_words(expr: Edit, method: EditMethod[...]) -> None:
    faults = []
    known = [part.value for part in Part]
    faults += [Fault(f"there are no writers {word!r}", expr.origin, nearest(word, [*known, "all"]))
               for word in expr.writers if word not in known]  # fmt: skip
    if expr.tied not in TIED:
        faults.append(Fault(f"tied: {expr.tied!r} is none of {', '.join(TIED)}", expr.origin))
    if method.needs_directions and not expr.directions:
        faults.append(Fault(f"{method.name} needs directions", expr.origin, "name one: directions: [NAME]"))
    if expr.directions and not method.needs_directions:
        faults.append(Fault(f"{method.name} works along no direction, and directions are given", expr.origin))
    if faults:
        raise RecipeError(faults)


def _check_unknown(expr: Edit, anatomy: Anatomy) -> None:
    if anatomy.unknown and not expr.allow_partial:
        shown = "\n    ".join(anatomy.unknown[:20]) + ("\n    …" if len(anatomy.unknown) > 20 else "")
        raise MismatchError(
            f"{len(anatomy.unknown)} tensors are in no row of the table of {anatomy.family.name}, and may write the "
            f"residual stream:\n    {shown}",
            origin=expr.origin,
            hint="allow_partial: true edits the known writers only, and the claim says so",
        )


def _along(use: DirectionRef, anatomy: Anatomy, resolver: Resolver) -> Along:
    try:
        return _held(use, anatomy, resolver)
    except SurgeonError as error:
        error.origin = error.origin or use.origin
        raise


def _held(use: DirectionRef, anatomy: Anatomy, resolver: Resolver) -> Along:
    if isinstance(use.source, str):
        held = Direction.load(Path(use.source).expanduser())
    else:
        held = use.source if isinstance(use.source, Direction) else stand_in(use.source, resolver)
    label = use.name or (use.source if isinstance(use.source, str) else str(held.about.get("name", "the direction")))
    held.check(label)
    if held.width != anatomy.width:
        hint = f"use one that was measured on a model of width {anatomy.width}"
        raise MismatchError(f"{label} is {held.width} wide and the stream {anatomy.width}", hint=hint)
    return Along(held, use.at or held.at, label)


def check_models(expr: Expr, sources: Sources) -> None:
    """MismatchError for a direction that was measured on none of the models it is used on."""
    marks: dict[Model, str] = {}
    for node in walk(expr):
        for use in node.directions if isinstance(node, Edit) else ():
            held = use.source if isinstance(use.source, Direction) else None
            if isinstance(use.source, str):
                held = Direction.load(Path(use.source).expanduser())
            wanted = held.about.get("model") if held is not None else None
            models = [m for m in walk(node) if isinstance(m, Model) and isinstance(sources[m], Checkpoint)]
            for model in models if wanted else ():
                source = sources[model]
                if model not in marks and isinstance(source, Checkpoint):
                    marks[model] = fingerprint(source)
            if wanted and wanted not in (marks[model] for model in models):
                name = use.name or use.source
                raise MismatchError(
                    f"{name} was measured on another model ({held and held.about.get('model_ref', 'unknown')})",
                    origin=use.origin or node.origin,
                    hint="measure it on this one (surgeon find), or insist with --any-model",
                )


def _check_rank(along: tuple[Along, ...], anatomy: Anatomy) -> None:
    rank = sum(max(len(rows) for rows in one.direction.tensors.values()) for one in along)
    if rank > anatomy.width:
        raise MismatchError(f"{rank} directions cannot be apart in a stream {anatomy.width} wide")


def _check_points(expr: Edit, along: tuple[Along, ...], chosen: Mapping[str, Place]) -> None:
    faults = []
    for use, one in zip(expr.directions, along, strict=True):
        origin = use.origin or expr.origin
        if one.at not in (OWN, OWN_MID) and one.at not in one.direction.tensors:
            hint = nearest(one.at, one.direction.tensors) + "; or own: each block its own"
            faults.append(Fault(f"{one.name} holds nothing at {one.at}", origin, hint))
            continue
        missing = sorted({one.point(place) for place in chosen.values()} - one.direction.tensors.keys())
        if missing:
            shown = ", ".join(missing[:6]) + (" …" if len(missing) > 6 else "")
            hint = "limit the edit: layers, writers"
            faults.append(Fault(f"{one.name} holds no direction of its own at {shown}", origin, hint))
    if faults:
        raise RecipeError(faults)
