"""A loaded base with the lessons that everything tried on it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.directions.examples import Example, neutral_examples, read_examples
from surgeon.errors import RefusedError, nearest
from surgeon.measuring.trial import edited
from surgeon.planning.plan import Plan
from surgeon.runtime.load import Loaded, load
from surgeon.space.expr import Expr
from surgeon.tuning.learn import Note
from surgeon.tuning.lessons import Answer, Lesson, check_sets, lesson, score
from surgeon.tuning.settings import Tuning

#: What the lesson of neutral examples is called, and how much of each the base says to them.
GUARD, GUARDED_TOKENS = "base, on neutral examples", 24


@dataclass(frozen=True, eq=False)
class Bench:
    """`skills` are the experts' lessons, `guard` the base's."""

    loaded: Loaded
    skills: tuple[Lesson, ...]
    guard: Lesson

    @property
    def lessons(self) -> tuple[Lesson, ...]:
        """All of them, the guard last."""
        return (*self.skills, self.guard)

    def measure(self, part: Callable[[Lesson], Sequence[Answer]] = lambda one: one.held) -> dict[str, Any]:
        """How the model in hand does on held-out prompts: agreement and KL by skill, KL to the base on the guard."""
        found = {one.name: score(self.loaded, part(one)) for one in self.skills}
        return {
            "agreement": {name: one.agreement for name, one in found.items()},
            "kl": {name: one.kl for name, one in found.items()},
            "chat_kl": score(self.loaded, part(self.guard)).kl,
        }

    def measured(self, expr: Expr) -> dict[str, Any]:
        """How an expression does, evaluated into the model as `apply` would write it, in float32."""
        with edited(self.loaded, expr):
            return self.measure()


def bench(
    loaded: Loaded, points: Mapping[str, Expr], sets: Mapping[str, Sequence[Example]], neutral: Sequence[Example],
    how: Tuning, note: Note, seen: Callable[[Plan], None] = lambda plan: None,
) -> Bench:  # fmt: skip
    """Let every expert speak; `seen` is called while the model is an expert, with the plan that made it so."""
    skills = []
    for name, point in points.items():
        with edited(loaded, point) as plan:
            skills.append(lesson(loaded, name, sets[name], 1 / len(points), how.tokens))
            seen(plan)
        note("experts", len(skills), len(points) + 1)
    guard = lesson(loaded, GUARD, neutral, how.guard, GUARDED_TOKENS, reads_texts=True)
    note("experts", len(points) + 1, len(points) + 1)
    return Bench(loaded, tuple(skills), guard)


def check_names(prompts: Mapping[str, object], known: Sequence[str], every: bool) -> None:
    """Refuse prompts for what the recipe does not have; with `every`, also experts without prompts."""
    for name in prompts:
        if name not in known:
            raise RefusedError(f"prompts are given for {name!r}, which is no expert here", hint=nearest(name, known))
    missing = [name for name in known if name not in prompts]
    if (missing and every) or not prompts:
        what = f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no prompts"
        hint = f"--prompts {missing[0] if missing else 'NAME'}=FILE.jsonl, about 100 prompts a skill"
        raise RefusedError(what, hint=hint)


def sets_of(how: Tuning) -> dict[str, Sequence[Example]]:
    """The prompts by expert, checked."""
    sets = {name: read_examples(Path(file).expanduser(), mixed=True) for name, file in how.prompts.items()}
    check_sets(sets)
    return dict(sets)


def neutral_of(how: Tuning, loaded: Loaded) -> Sequence[Example]:
    """The neutral examples asked for, else those that come with the package."""
    if how.neutral is None:
        return neutral_examples(loaded.has_chats)
    found = read_examples(how.neutral.expanduser(), mixed=True)
    check_sets({"the neutral set": found})
    return found


def loaded_for(plan: Plan, run: tuple[str, str]) -> Loaded:
    """The model whose side files a plan takes, in a dtype on a device."""
    dtype, device = run
    return load(plan.files_from.root, dtype=dtype, device=device)


def about(tried: Bench, how: Tuning) -> dict[str, Any]:
    """What a report says of prompts and settings."""
    counts = {one.name: {"learned_from": len(one.train), "held_out": len(one.held)} for one in tried.lessons}
    settings = {name: value for name, value in vars(how).items() if name not in ("prompts", "neutral")}
    return {"prompts": counts, "settings": settings}
