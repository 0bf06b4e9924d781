"""What merges take of data, measured while a recipe runs: one pass a model, a file for each, kept with the result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.errors import SurgeonError
from surgeon.space.expr import Fit, Member, Merge, MergeSettings, data_fits

if TYPE_CHECKING:
    from surgeon.artifacts.artifact import Artifact
    from surgeon.engine.events import Listener
    from surgeon.planning.measured import Measuring
    from surgeon.planning.options import Options
    from surgeon.planning.plan import Plan
    from surgeon.planning.sources import Sources


def pending(fit: Fit | Measuring, sources: Sources) -> bool:
    """Whether something else has to be measured before what a fit is measured on can be made."""
    from surgeon.planning.measured import measurings
    from surgeon.planning.prepare import fits

    models = (fit.model,) if isinstance(fit, Fit) else fit.rests_on
    return any(fits(model) or measurings(model, sources) for model in models)


def measured_files(
    together: Sequence[Measuring], folder: Path, plan: Plan, listener: Listener | None
) -> dict[Measuring, str]:
    """The files of what is measured on one model, or in one merge, unless an earlier run of the build has."""
    from surgeon.verbs.measure_data import measured, running
    from surgeon.verbs.measure_merged import measured_together

    options = plan.options
    names = {one: re.sub(r"[^\w.-]+", "_", one.name or one.kind) for one in together}
    files = {one: folder / _key(one, options) / f"{names[one]}.safetensors" for one in together}
    missing = {one: file for one, file in files.items() if not file.exists()}
    if missing and together[0].joint is not None:
        measured_together(together[0].joint, files, plan, listener)
    elif missing:
        with running(together[0].model, options) as (loaded, planned):
            for one, file in missing.items():
                try:
                    measured(one.kind, loaded, planned, one.prompts, file, listener=listener, name=one.name)
                except SurgeonError as error:
                    error.origin = error.origin or one.origin
                    raise
    return {one: str(file) for one, file in files.items()}


def relative_files(merge: Merge, kept: Path | None, held: dict[str, Artifact]) -> Merge:
    """The merge with files called by name alone, and these artifacts put into `held`.

    These are the files that lie in the folder `kept`, and those that are small: what is given to methods band by band.
    """
    from surgeon.artifacts.banded import Banded
    from surgeon.artifacts.kinds import open_artifact
    from surgeon.space.registry import merge_method_named

    small = {p.name for p in merge_method_named(merge.method).parameters.values() if issubclass(p.type, Banded)}

    def named(given: MergeSettings) -> MergeSettings:
        found = []
        for name, value in given:
            path = Path(value).expanduser() if isinstance(value, str) else None
            if path is not None and (kept in path.parents or name in small):
                artifact = open_artifact(path)
                called = next((key for key, one in held.items() if _same(one, artifact)), "") or _free(path.name, held)
                held[called] = artifact
                value = f"./{called}"
            found.append((name, value))
        return tuple(found)

    members = tuple(Member(member.of, named(member.settings)) for member in merge.members)
    return replace(merge, members=members, settings=named(merge.settings))


def _same(one: Artifact, other: Artifact) -> bool:
    """Whether two are one file, or (where they are in memory) one content."""
    files = [getattr(artifact, "file", None) for artifact in (one, other)]
    return files[0] == files[1] if any(files) else one == other


def _free(name: str, held: dict[str, Artifact]) -> str:
    stem, suffix = Path(name).stem, Path(name).suffix
    numbered = (f"{stem}-{number}{suffix}" for number in range(2, len(held) + 3))
    return next(one for one in (name, *numbered) if one not in held)


def _key(one: Measuring, options: Options) -> str:
    """The identity of a measurement: on what, with which prompts."""
    from blake3 import blake3

    from surgeon.engine.receipt import plan_key
    from surgeon.planning.plan import build
    from surgeon.recipe import dump_recipe
    from surgeon.space.output import Output, Recipe

    planned = build(Recipe(one.joint or one.model, Output(dtype="F32", dequantize=True)), options)
    hasher = blake3(plan_key(planned, dump_recipe(planned.recipe, schema=False)).encode())
    hasher.update(one.kind.encode() + b"\0")
    for prompts in [one.prompts, *(fit.prompts for fit in (data_fits(one.joint) if one.joint else ()))]:
        hasher.update(b"\0" + (Path(prompts).expanduser().read_bytes() if prompts else b""))
    hasher.update(dump_recipe(one.model, schema=False).encode())
    return hasher.hexdigest()
