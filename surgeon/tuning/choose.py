"""The work behind `surgeon tune` where numbers are searched: what every choice is worth, and the best of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from surgeon.directions.examples import Example
from surgeon.measuring.trial import edited
from surgeon.planning.plan import Plan, build
from surgeon.planning.resolve import Resolver
from surgeon.recipe.search import Searched
from surgeon.space.expr import ONE, Edit, Expr, Merge, Model, combination, walk
from surgeon.space.output import Recipe
from surgeon.tuning.bench import about, bench, check_names, loaded_for, neutral_of, sets_of
from surgeon.tuning.learn import Note
from surgeon.tuning.search import Judged, best, search
from surgeon.tuning.settings import Tuning

#: Prompts of each skill by which a choice is judged; the held-out ones judge the best.
TRIED = 24


@dataclass(frozen=True)
class Found:
    """The values that were best, by place, and what was measured."""

    values: Mapping[str, str]
    report: dict[str, Any]


def choose(
    read: Callable[[Mapping[str, str]], Recipe], numbers: Sequence[Searched], how: Tuning, run: tuple[str, str],
    journal: Path, note: Note,
) -> Found:  # fmt: skip
    """Search the open numbers of a recipe; `read` gives it with values in their place."""
    first = read({one.path: one.spelled(one.values[0]) for one in numbers})
    plan = build(first)
    points = _points(plan)
    check_names(how.prompts, list(points), every=False)
    sets = sets_of(how)
    loaded = loaded_for(plan, run)
    neutral = neutral_of(how, loaded)
    tried = bench(loaded, {name: points[name] for name in how.prompts}, sets, neutral, how, note)

    def judge(values: Mapping[str, str]) -> Judged:
        with edited(loaded, read(values).expr):
            return _judged(tried.measure(lambda one: one.train[:TRIED]), how)

    identity = _identity(numbers, sets, neutral, plan, how)
    trials = search(numbers, judge, trials=how.trials, seed=how.seed, journal=journal, identity=identity, note=note)
    chosen = best(trials)
    values = {one.path: one.spelled(chosen.values[one.path]) for one in numbers}
    rows = [{"name": "found"} | tried.measured(read(values).expr)]
    report = {
        "kind": "searched", "rows": rows, "chosen": chosen.to_dict(), "trials": [trial.to_dict() for trial in trials],
    } | about(tried, how)  # fmt: skip
    return Found(values, report)


def _judged(measured: Mapping[str, Any], how: Tuning) -> Judged:
    """Agreement with the experts, less what chat KL is over the budget, in budgets."""
    agreements = list(measured["agreement"].values())
    value = min(agreements) if how.score == "worst" else sum(agreements) / len(agreements)
    over = max(0.0, measured["chat_kl"] / how.budget - 1) if how.budget else measured["chat_kl"]
    return Judged(value - over, measured)


def _points(plan: Plan) -> dict[str, Expr]:
    """What prompts can be given for: models, merges and edits by name, as models; adapters on the recipe's base."""
    base = next(model for model, source in plan.sources.items() if source is plan.files_from)
    resolver = Resolver(plan.sources)
    standing = resolver.on(resolver(base))
    found: dict[str, Expr] = {}
    for node in walk(plan.recipe.expr):
        if isinstance(node, Model | Merge | Edit) and node not in (base, plan.recipe.expr):
            is_point = standing(node).mass.is_number(1)
            found[str(node)] = node if is_point else combination([(base, ONE), (node, ONE)])
    return found


def _identity(
    numbers: Sequence[Searched], sets: Mapping[str, Sequence[Example]], neutral: Sequence[Example], plan: Plan,
    how: Tuning,
) -> str:  # fmt: skip
    """What tells one search from another, however many trials it has."""
    spaces = [[one.path, list(one.values), one.choices] for one in numbers]
    texts = {name: sorted(one.content for one in held) for name, held in {**sets, "": neutral}.items()}
    judged = [how.budget, how.score, how.tokens, how.seed]
    about = [str(plan.recipe.expr), sorted(str(model.ref) for model in plan.sources), spaces, texts, judged]
    return blake3(json.dumps(about, sort_keys=True).encode()).hexdigest()
