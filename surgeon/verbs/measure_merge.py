"""`surgeon measure merge`: what a merge has to expect, before it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.errors import RefusedError, nearest
from surgeon.space.api import given
from surgeon.space.expr import Expr, Model
from surgeon.space.output import Output, Recipe

if TYPE_CHECKING:
    from surgeon.engine.events import Listener
    from surgeon.measuring.merge_report import MergeReport
    from surgeon.measuring.path import Kept
    from surgeon.store.checkpoint import Checkpoint


def measure_merge(
    models: Sequence[str | Path | Model],
    base: str | Path | Model,
    *,
    prompts: Mapping[str, str | Path] | None = None,
    device: str = "auto",
    on_event: Listener | None = None,
) -> MergeReport:
    """Measure how the task vectors of checkpoints or adapters lie to each other around their base.

    Norms, cosines, sign conflict, subspace alignment and interference by layer; with `prompts` (model's name → file of
    examples) also what the sum keeps of each model's own answers. `advice()` of the report says what to expect, which
    method to try first, and why. RefusedError for fewer than two models.
    """
    from surgeon.engine.events import Progress
    from surgeon.measuring.interference import together
    from surgeon.measuring.merge import by_layer, side_differences
    from surgeon.measuring.merge_report import MergeReport
    from surgeon.planning.resolve import Resolver, same_tables
    from surgeon.planning.sources import open_sources
    from surgeon.store.checkpoint import Checkpoint
    from surgeon.verbs.plan import plan

    root = base if isinstance(base, Model) else given(base)
    opened = _named([model if isinstance(model, Model) else given(model) for model in models])
    if unknown := [name for name in prompts or {} if name not in opened]:
        raise RefusedError(f"prompts are given for {unknown[0]!r}, which is no model", hint=nearest(unknown[0], opened))
    sources = open_sources(root, *opened.values())
    standing = sources[root]
    if not isinstance(standing, Checkpoint):
        raise RefusedError(f"{root} is an adapter, and no base", hint="name the checkpoint the models were made from")
    points: dict[str, Expr] = {
        name: model if isinstance(sources[model], Checkpoint) else root + model for name, model in opened.items()
    }
    resolver = Resolver(sources)
    for point in points.values():
        same_tables(resolver(root), resolver(point))
    plans = [plan(Recipe(point, Output(dtype="F32")), device=device) for point in points.values()]

    def note(done: int, total: int, detail: str) -> None:
        if on_event is not None:
            on_event(Progress("measure", done, total, "tensors", detail))

    layers = by_layer(standing, dict(zip(points, plans, strict=True)), note)
    if not layers:
        raise RefusedError("every model is the base: there is nothing to merge")
    checkpoints = {name: source for name, model in opened.items() if isinstance(source := sources[model], Checkpoint)}
    kept = _path(standing, root, points, prompts, device, on_event) if prompts else {}
    return MergeReport(tuple(opened), layers, together(layers.values()), kept, side_differences(standing, checkpoints))


def _named(models: Sequence[Model]) -> dict[str, Model]:
    """The models by their names, told apart where two have one."""
    if len(models) < 2:
        raise RefusedError(f"{len(models)} model(s) are no merge", hint="name two or more, and their base")
    found: dict[str, Model] = {}
    for model in models:
        if model in found.values():
            raise RefusedError(f"{model} is named twice", hint="name each model once")
        name = str(model)
        found[name if name not in found else f"{name}_{len(found)}"] = model
    return found


def _path(
    standing: Checkpoint, base: Model, experts: Mapping[str, Expr], prompts: Mapping[str, str | Path], device: str,
    on_event: Listener | None,
) -> Mapping[str, Kept]:  # fmt: skip
    from surgeon.directions.examples import read_examples
    from surgeon.engine.events import Progress
    from surgeon.measuring.path import walk_path
    from surgeon.runtime.load import load

    examples = {name: read_examples(Path(file).expanduser(), mixed=True) for name, file in prompts.items()}
    loaded = load(standing.root, device=device)

    def note(done: int, total: int) -> None:
        if on_event is not None:
            on_event(Progress("measure: path", done, total, "runs"))

    return walk_path(loaded, base, experts, examples, note)
