"""Recipes that measure: a fit cuts the plan into stages (materialise in fp32 → fit → go on).

What a stage gives is kept beside OUT until OUT stands, so that an interrupted build does not measure again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.space.expr import DirectionRef, Edit, Expr, Fit, Model, walk
from surgeon.space.output import Output, Recipe

if TYPE_CHECKING:
    from surgeon.artifacts.direction import Direction
    from surgeon.engine.events import Listener
    from surgeon.planning.options import Options
    from surgeon.planning.plan import Plan


@contextmanager
def stages(recipe: Recipe, out: Path, options: Options, listener: Listener | None) -> Iterator[Recipe]:
    """The recipe with every fit replaced by the file of what it gave; the files are removed when all went well."""
    from surgeon.planning.prepare import fits, with_directions

    stash = out.parent / f".{out.name}.surgeon-stages"
    expr = recipe.expr
    while waiting := fits(expr):
        stash.mkdir(parents=True, exist_ok=True)
        first = waiting[0]
        expr = with_directions(expr, {first: _fitted(first, stash, options, listener)})
    yield replace(recipe, expr=expr)
    shutil.rmtree(stash, ignore_errors=True)


def _fitted(fit: Fit, stash: Path, options: Options, listener: Listener | None) -> DirectionRef:
    """The file of a fit, measured unless an earlier run of the same build has."""
    from surgeon.planning.plan import build

    planned = build(Recipe(fit.model, Output(dtype="F32")), options)
    key = _key(fit, planned)
    file = stash / f"{key}.safetensors"
    if not file.exists():
        direction = _measured(fit, planned, stash / f"stage-{key}", listener)
        partial = file.with_suffix(".partial")
        direction.save(partial)
        partial.replace(file)
    return DirectionRef(str(file), fit.at, fit.name)


def _measured(fit: Fit, planned: Plan, folder: Path, listener: Listener | None) -> Direction:
    from surgeon.directions.contrast import Contrast
    from surgeon.directions.examples import read_examples
    from surgeon.directions.fit import fit as fit_direction
    from surgeon.engine.build import build
    from surgeon.recipe import dump_recipe
    from surgeon.runtime.load import load
    from surgeon.store.fingerprint import fingerprint

    contrast = Contrast.read(Path(fit.positive), Path(fit.negative))
    settings = dict(fit.settings)
    position, neutral = str(settings.pop("position", "last")), settings.pop("neutral", "")
    stored = isinstance(fit.model, Model)
    if not stored and not folder.exists():
        build(planned, folder, given=None, resolved=dump_recipe(planned.recipe, schema=False), listener=listener)
    found = fit_direction(
        load(planned.files_from.root if stored else folder),
        fit.fitter,
        contrast,
        neutral=read_examples(Path(str(neutral)), mixed=True) if neutral else None,
        at=fit.at,
        position=position,
        settings=settings,
        name=fit.name,
        model=fingerprint(planned.files_from),
        model_ref=planned.files_from.ref,
    )
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _key(fit: Fit, planned: Plan) -> str:
    """The identity of a fit: what it is measured on, with what, how."""
    from blake3 import blake3

    from surgeon.engine.receipt import plan_key
    from surgeon.recipe import dump_recipe

    hasher = blake3(plan_key(planned, dump_recipe(planned.recipe, schema=False)).encode())
    hasher.update(json.dumps([fit.fitter, fit.at, [[name, str(value)] for name, value in fit.settings]]).encode())
    for file in (fit.positive, fit.negative, dict(fit.settings).get("neutral")):
        hasher.update(b"\0" + (Path(str(file)).read_bytes() if file else b""))
    return hasher.hexdigest()


def with_artifacts(recipe: Recipe) -> tuple[Recipe, dict[str, Direction]]:
    """The recipe with every direction named relative to the recipe's folder, and the directions by file name."""
    from surgeon.planning.prepare import rebuilt

    held: dict[str, Direction] = {}
    made: dict[Expr, Expr] = {}
    for node in walk(recipe.expr):
        again = rebuilt(node, made)
        if isinstance(again, Edit):
            again = replace(again, directions=tuple(_relative(use, held) for use in again.directions))
        made[node] = again
    return replace(recipe, expr=made[recipe.expr]), held


def _relative(use: DirectionRef, held: dict[str, Direction]) -> DirectionRef:
    from surgeon.artifacts.direction import Direction

    if isinstance(use.source, Fit):
        return use
    loaded = Direction.load(Path(use.source).expanduser()) if isinstance(use.source, str) else use.source
    wanted = use.name or str(loaded.about.get("name") or "direction")
    name, number = f"{wanted}.safetensors", 2
    while name in held and held[name] != loaded:
        name, number = f"{wanted}-{number}.safetensors", number + 1
    held[name] = loaded
    return replace(use, source=f"./{name}", at=use.at or loaded.at, name=use.name or wanted)
