"""The search behind `surgeon find`: a direction fitted, its writers ranked, a scope and a strength chosen, confirmed.

Training prompts decide everything; held-out prompts only confirm it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from surgeon.artifacts.direction import Direction
from surgeon.directions.examples import Example
from surgeon.measuring import effects
from surgeon.measuring.effects import Neutral, Spoken
from surgeon.measuring.manner import Answer, Manner, Rate
from surgeon.measuring.trial import edited
from surgeon.runtime.load import Loaded
from surgeon.runtime.prefix import recorded, replayed
from surgeon.space.expr import Expr
from surgeon.tuning.scope import STRENGTHS, Effect, Scope, Tried, choose, scopes, search, single_writers

Note = Callable[[str, int, int], None]

#: How many prompts, and how many tokens of their answers, each part of the search looks at. Ranking makes one pass.
RANKED, TRIED, COUNTED, TOKENS, ANSWER = 8, 12, 24, 4, 12


@dataclass(frozen=True)
class Bench:
    """A loaded model with what its edits are judged by."""

    loaded: Loaded
    of: Expr
    direction: Direction
    manner: Manner
    prompts: Sequence[Example]
    answers: Sequence[Answer]
    neutral: Neutral
    note: Note
    _measured: dict[tuple[Scope, float], Tried] = field(default_factory=dict)
    _spoken: dict[int, tuple[Spoken, float]] = field(default_factory=dict)

    def spoken(self, count: int) -> tuple[Spoken, float]:
        """The shortest prompts that show the manner, with the beginning of their answers; and its log p unedited."""
        if count not in self._spoken:
            every = sorted(zip(self.prompts, self.answers, strict=True), key=lambda pair: len(pair[0].asked))
            chosen = ([pair for pair in every if self.manner.shows(pair[1])] or every)[:count]
            held = effects.spoken(self.loaded, [e for e, _ in chosen], [a for _, a in chosen], TOKENS)
            self._spoken[count] = held, held.log_probability(self.loaded)
        return self._spoken[count]

    def measure(self, scope: Scope, strength: float) -> Tried:
        """The manner's loss and the cost of one scope at one strength."""
        if (scope, strength) not in self._measured:
            held, before = self.spoken(TRIED)
            with edited(self.loaded, scope.edit(self.of, self.direction, strength)):
                after = held.log_probability(self.loaded)
                self._measured[scope, strength] = Tried(scope, strength, before - after, self.neutral.cost(self.loaded))
        return self._measured[scope, strength]

    def counted(self, tried: Tried, prompts: Sequence[Example]) -> Rate:
        """How often the manner shows in what the edited model says."""
        return self.manner.rate(self.said(tried.scope, tried.strength, prompts))

    def said(self, scope: Scope, strength: float, prompts: Sequence[Example]) -> list[Answer]:
        """What the edited model says."""
        with edited(self.loaded, scope.edit(self.of, self.direction, strength)):
            return effects.answers(self.loaded, prompts, ANSWER)


def rank(bench: Bench) -> list[Effect]:
    """The causal effect of every block's attention and MLP, each edited by itself along its own direction."""
    held, before = bench.spoken(RANKED)
    with recorded(bench.loaded) as outputs:
        held.log_probability(bench.loaded)
    found = []
    writers = list(single_writers(bench.loaded.anatomy))
    for done, (block, part, scope) in enumerate(writers):
        with edited(bench.loaded, scope.edit(bench.of, bench.direction, 1.0)), replayed(bench.loaded, outputs, block):
            found.append(Effect(block, part, before - held.log_probability(bench.loaded)))
        bench.note("writers", done + 1, len(writers))
    return found


def choose_scope(bench: Bench, ranked: Sequence[Effect], budget: float) -> tuple[Tried, list[Tried]]:
    """The scope and strength to use, and everything that was tried on the way."""
    candidates = scopes(ranked, bench.loaded.anatomy.blocks)
    done = 0

    def measure(scope: Scope, strength: float) -> Tried:
        nonlocal done
        done += 1
        bench.note("scopes", done, len(candidates) * len(STRENGTHS))
        return bench.measure(scope, strength)

    tried = search(candidates, measure, budget)
    bench.note("scopes", done, done)
    before = bench.manner.rate(bench.answers).value
    counted = _counted(bench, tried, before, budget)
    known = {(one.scope, one.strength): one for one in counted}
    return choose(counted, before, budget), [known.get((one.scope, one.strength), one) for one in tried]


#: How many scopes are judged by what the model then says, within the budget and beyond it.
COUNT = 9


def _counted(bench: Bench, tried: Sequence[Tried], before: float, budget: float) -> list[Tried]:
    """Rates of the cheapest promising ones, until one leaves (almost) nothing; of dearer ones where none does."""
    counted: list[Tried] = []
    for offered in (_promising(tried, 0.0, budget), _promising(tried, budget, float("inf"))):
        for one in offered:
            rate = bench.counted(one, bench.prompts[: COUNTED // 2]).value
            if rate <= 0.15 * before:
                rate = bench.counted(one, bench.prompts[:COUNTED]).value
            counted.append(replace(one, rate=rate))
            bench.note("answers", len(counted), 2 * COUNT)
            if rate <= 0.03 * before:
                break
        if any(one.rate is not None and one.rate <= 0.1 * before for one in counted):
            break
    return counted


def _promising(tried: Sequence[Tried], above: float, up_to: float) -> list[Tried]:
    """Those of such a cost, from the cheapest on: each that loses more than all cheaper ones, and every removal.

    A removal (strength 1) can be proven of the written file, and acts in more ways than its first tokens show.
    """
    most, found = 0.0, []
    for one in sorted(tried, key=lambda one: one.kl):
        if above < one.kl <= up_to and (one.nats > most or one.strength == 1):
            found.append(one)
            most = max(most, one.nats)
    strongest = max((one.nats for one in found), default=0.0)
    telling = [one for one in found if one.nats >= 0.05 * strongest] if len(found) > COUNT else found
    return [telling[len(telling) * at // COUNT] for at in range(COUNT)] if len(telling) > COUNT else telling


def dose(
    bench: Bench, scope: Scope, strengths: Sequence[float], positive: Sequence[Example], negative: Sequence[Example]
) -> list[dict[str, Any]]:
    """Manner and cost over strengths of both signs: nats, KL, and rates on prompts with and without it."""
    rows: list[dict[str, Any]] = []
    for strength in strengths:
        tried = bench.measure(scope, strength)
        rows.append({"strength": strength, "nats": -tried.nats, "kl": tried.kl, "rate": None, "rate_negative": None})
        if strength >= 0:
            rows[-1]["rate"] = bench.counted(tried, positive).value
        if strength <= 0:
            rows[-1]["rate_negative"] = bench.counted(tried, negative).value
        bench.note("strengths", len(rows), len(strengths))
    return rows
