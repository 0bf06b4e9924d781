"""Edits tried on a loaded model, one after another, through the module sink; everything is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from surgeon.engine.run import run
from surgeon.planning.options import Options
from surgeon.planning.plan import Plan, build
from surgeon.planning.step import Target
from surgeon.runtime.load import Loaded
from surgeon.runtime.module_sink import ModuleSink
from surgeon.space.expr import Expr
from surgeon.space.output import Output, Recipe
from surgeon.store.checkpoint import Checkpoint, open_checkpoint


@contextmanager
def edited(loaded: Loaded, expr: Expr, options: Options | None = None) -> Iterator[Plan]:
    """The model as an expression makes it, while the context lasts; only what the expression changes is computed."""
    plan = changes_only(build(Recipe(expr, Output(dtype="F32", dequantize=True)), options), loaded)
    with ModuleSink(loaded, {target.name: target.spec for target in plan.targets}) as sink:
        run(plan, sink)
        yield plan


def changes_only(plan: Plan, loaded: Loaded) -> Plan:
    """The plan without the tensors that are those of the folder a model was loaded from."""
    own = open_checkpoint(loaded.folder, str(loaded.folder))
    return replace(plan, targets=tuple(target for target in plan.targets if _changes(plan, target, own)))


def _changes(plan: Plan, target: Target, own: Checkpoint) -> bool:
    step = plan.steps[target.key]
    held = own.tensors.get(target.name)
    return held is None or step.stored is None or step.stored.place != held.place
