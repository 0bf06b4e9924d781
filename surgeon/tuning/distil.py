"""The work behind `surgeon tune` where coefficients are learned: what was measured, and the recipe it ends in."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from surgeon.artifacts.coefficients import Coefficients
from surgeon.planning.plan import Plan, build
from surgeon.runtime.load import Loaded
from surgeon.runtime.names import parameter_views
from surgeon.space.api import merge
from surgeon.space.expr import Expr
from surgeon.space.output import Recipe
from surgeon.tuning.arithmetic import Arithmetic, arithmetic
from surgeon.tuning.bench import about, bench, check_names, loaded_for, neutral_of, sets_of
from surgeon.tuning.changes import check_memory, factors, inventory
from surgeon.tuning.grain import GRAINS, Free, Grain, free
from surgeon.tuning.learn import Note, learn
from surgeon.tuning.mixture import Changes, linears
from surgeon.tuning.settings import Tuning

#: The file beside the recipe.
ARTIFACT = "coefficients.safetensors"


@dataclass(frozen=True)
class Learned:
    """Coefficients, the recipe that uses them (it names the file `ARTIFACT` beside it), and what was measured."""

    coefficients: Coefficients
    recipe: Recipe
    report: dict[str, Any]


def learned(recipe: Recipe, how: Tuning, compare: bool, run: tuple[str, str], beside: Path, note: Note) -> Learned:
    """Learn the coefficients of a recipe's arithmetic. `run` is the dtype and device; the artifact is put `beside`."""
    found = arithmetic(recipe.expr)
    points = {expert.name: expert.point for expert in found.experts}
    check_names(how.prompts, list(points), every=True)
    sets = sets_of(how)
    loaded = loaded_for(build(Recipe(found.base)), run)
    neutral = neutral_of(how, loaded)
    tuner = _Tuner(found, loaded)
    tried = bench(loaded, points, sets, neutral, how, note, tuner.see)
    rows = [{"name": "start"} | tried.measured(recipe.expr)]
    made: dict[Grain, Coefficients] = {}
    for grain in dict.fromkeys((*(GRAINS if compare else ()), how.per)):
        begun, fresh = time.monotonic(), tuner.free(grain)
        losses = learn(loaded, tuner.changes, fresh, tried.lessons, how.pace, note)
        seconds = round(time.monotonic() - begun, 1)
        made[grain] = fresh.artifact(list(points))
        made[grain].save(beside / ARTIFACT)
        row = {"name": f"per {grain}", "numbers": fresh.count, "seconds": seconds, "losses": losses}
        rows.append(row | tried.measured(_merge(found, str(beside / ARTIFACT))))
    report = {"kind": "learned", "per": how.per, "rows": rows} | about(tried, how)
    return Learned(made[how.per], replace(recipe, expr=_merge(found, f"./{ARTIFACT}")), report)


def _merge(found: Arithmetic, path: str) -> Expr:
    expr = merge("tuned", [expert.of for expert in found.experts], base_model=found.base, coefficients=path)
    return replace(expr, settings=(("coefficients", path),), name="tuned")


class _Tuner:
    """The experts' changes, gathered while each of them is in the model."""

    def __init__(self, found: Arithmetic, loaded: Loaded) -> None:
        self._found, self._loaded = found, loaded
        self._views = parameter_views(loaded)
        self._held = inventory(found, loaded, linears(loaded, self._views))
        check_memory(self._held, len(found.experts))
        self._base = {name: self._views[name].clone() for name in self._held.dense}
        self._dense: dict[str, list[Tensor | None]] = {name: [] for name in self._held.dense}
        self.changes = Changes(factors(self._held, loaded.device), self._dense)

    def see(self, plan: Plan) -> None:
        """Keep what the expert in the model changes in dense tensors."""
        changed = {target.name for target in plan.targets}
        for name, base in self._base.items():
            difference = self._views[name].float() - base.float() if name in changed else None
            self._dense[name].append(difference)

    def free(self, grain: Grain) -> Free:
        """Coefficients at the weights of the recipe."""
        shapes = {name: spec.shape for name, spec in self._held.specs.items()}
        start = [expert.weight for expert in self._found.experts]
        return free(grain, shapes, self._loaded.anatomy, start, self._loaded.device)
