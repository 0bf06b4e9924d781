"""Recipes that measure: a fit cuts the plan into stages (materialise in fp32 → fit → go on).

What a stage gives is kept beside OUT until OUT stands, so that an interrupted build does not measure again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.errors import SurgeonError
from surgeon.space.expr import DirectionRef, Edit, Expr, Fit, Merge, Model, walk
from surgeon.space.output import Output, Recipe

if TYPE_CHECKING:
    from surgeon.artifacts.artifact import Artifact
    from surgeon.artifacts.direction import Direction
    from surgeon.engine.events import Listener
    from surgeon.planning.options import Options
    from surgeon.planning.plan import Plan
    from surgeon.runtime.load import Loaded


@contextmanager
def stages(
    plan: Plan, out: Path, listener: Listener | None, *, overwrite: bool, resume: bool | None
) -> Iterator[tuple[Recipe, Path | None]]:
    """The plan's recipe with every fit replaced by the file of what it gave, and the folder these lie in.

    The files lie in a locked folder beside OUT, which is removed when all went well, or failed for good.
    """
    if not plan.fits:
        yield plan.recipe, None
        return
    from surgeon.engine.build import check_out, resumable
    from surgeon.engine.workspace import Workspace
    from surgeon.planning.measured import Measuring, measurings, with_files
    from surgeon.planning.prepare import fits, with_directions
    from surgeon.verbs.stage_data import measured_files, pending

    key, _ = _identity(plan)
    beside = out.parent / f"{out.name}.stages"
    with Workspace(beside, key, overwrite=True, resume=resume) as kept:
        try:
            check_out(plan, out, overwrite=overwrite)
            expr = plan.recipe.expr
            while waiting := (*fits(expr), *measurings(expr, plan.sources)):
                # What rests on nothing that is still to be measured comes first.
                ready = next(fit for fit in waiting if not pending(fit, plan.sources))
                if isinstance(ready, Measuring):
                    wanted = (one for one in waiting if isinstance(one, Measuring) and one.joint == ready.joint)
                    data = [one for one in wanted if ready.joint or one.model == ready.model]
                    expr = with_files(expr, measured_files(data, kept.folder, plan, listener), plan.sources)
                else:
                    together = [one for one in waiting if isinstance(one, Fit) and one.model == ready.model]
                    expr = with_directions(expr, _fitted(together, kept.folder, plan.options, listener))
            yield replace(plan.recipe, expr=expr), kept.folder
        except SurgeonError as error:
            if not resumable(error):
                kept.discard()
            raise
        kept.discard()


def _identity(plan: Plan) -> tuple[str, str]:
    """What tells a plan from others, and its recipe in full."""
    from surgeon.engine.receipt import plan_key
    from surgeon.recipe import dump_recipe

    resolved = dump_recipe(with_artifacts(plan.recipe)[0], schema=False)
    return plan_key(plan, resolved), resolved


def _fitted(
    together: Sequence[Fit], folder: Path, options: Options, listener: Listener | None
) -> dict[Fit, DirectionRef]:
    """The files of all fits on one model, which are measured unless an earlier run of the same build has."""
    from surgeon.planning.plan import build
    from surgeon.runtime.load import load
    from surgeon.store.files import disk_errors

    planned = build(Recipe(together[0].model, Output(dtype="F32", dequantize=True)), options)
    identity, resolved = _identity(planned)
    files = {fit: folder / f"{_key(fit, identity)}.safetensors" for fit in together}
    missing = [fit for fit, file in files.items() if not file.exists()]
    stage = folder / f"stage-{identity}"
    if missing:
        loaded = load(_materialised(planned, stage, resolved, listener), device=options.device)
        for fit in missing:
            partial = files[fit].with_suffix(".partial")
            measured = _measured(fit, loaded, planned, listener)
            with disk_errors("keeping what was measured", partial):
                measured.save(partial)
                partial.replace(files[fit])
    shutil.rmtree(stage, ignore_errors=True)
    return {fit: DirectionRef(str(file), fit.at, fit.name) for fit, file in files.items()}


def _materialised(planned: Plan, stage: Path, resolved: str, listener: Listener | None) -> Path:
    """The folder of a model in fp32; an input is its own."""
    from surgeon.engine.build import build

    if isinstance(planned.recipe.expr, Model):
        return planned.files_from.root
    if not stage.exists():
        _, artifacts = with_artifacts(planned.recipe)
        build(planned, stage, given=None, resolved=resolved, artifacts=artifacts, listener=listener)
    return stage


def _measured(fit: Fit, loaded: Loaded, planned: Plan, listener: Listener | None) -> Direction:
    from surgeon.directions.contrast import Contrast
    from surgeon.directions.examples import read_examples
    from surgeon.directions.fit import fit as fit_direction
    from surgeon.engine.events import Progress
    from surgeon.store.fingerprint import fingerprint

    def tell(done: int, total: int) -> None:
        if listener is not None:
            listener(Progress(f"measure {fit.name}".rstrip(), done, total, "examples"))

    settings = dict(fit.settings)
    position, neutral = str(settings.pop("position", "last")), settings.pop("neutral", "")
    try:
        return fit_direction(
            loaded,
            fit.fitter,
            Contrast.read(Path(fit.positive).expanduser(), Path(fit.negative).expanduser()),
            neutral=read_examples(Path(str(neutral)).expanduser(), mixed=True) if neutral else None,
            at=fit.at,
            position=position,
            settings=settings,
            listener=tell,
            name=fit.name,
            model=fingerprint(planned.files_from),
            model_ref=planned.files_from.ref,
        )
    except SurgeonError as error:
        error.origin = error.origin or fit.origin
        raise


def _key(fit: Fit, model: str) -> str:
    """The identity of a fit: what it is measured on, with what, how."""
    from blake3 import blake3

    hasher = blake3(model.encode())
    hasher.update(json.dumps([fit.fitter, fit.at, [[name, str(value)] for name, value in fit.settings]]).encode())
    for file in (fit.positive, fit.negative, dict(fit.settings).get("neutral")):
        hasher.update(b"\0" + (Path(str(file)).expanduser().read_bytes() if file else b""))
    return hasher.hexdigest()


def with_artifacts(recipe: Recipe, kept: Path | None = None) -> tuple[Recipe, dict[str, Artifact]]:
    """The recipe with its artifacts named relative to its folder, and these by file name: what OUT/surgeon/ holds.

    These are all directions and coefficients, and of what merges take of data what lies in the folder `kept`, measured
    in this run; files of the user's with data stay where they are, for they are large.
    """
    from surgeon.planning.prepare import rebuilt
    from surgeon.verbs.stage_data import relative_files

    held: dict[str, Artifact] = {}
    made: dict[Expr, Expr] = {}
    for node in walk(recipe.expr):
        again = rebuilt(node, made)
        if isinstance(again, Edit):
            again = replace(again, directions=tuple(_relative(use, held) for use in again.directions))
        elif isinstance(again, Merge):
            again = relative_files(again, kept, held)
        made[node] = again
    return replace(recipe, expr=made[recipe.expr]), held


def _relative(use: DirectionRef, held: dict[str, Artifact]) -> DirectionRef:
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
