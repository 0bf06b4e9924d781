"""The way from a base to the sum of its experts, walked on a few prompts: what is left of each expert's answers.

A probe of linear connectivity: where the loss along base + α·Σ(expert − base) rises between its ends, arithmetic alone
does not get across.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from surgeon.measuring import effects
from surgeon.measuring.effects import Spoken
from surgeon.measuring.trial import edited
from surgeon.runtime.load import Loaded
from surgeon.runtime.text import Example, encode
from surgeon.space.expr import Expr

#: Where along the way the model is run; tokens of an expert's own answer where the prompts have none.
STEPS = (0.25, 0.4, 0.6, 0.8, 1.0)
ANSWER = 16


@dataclass(frozen=True)
class Kept:
    """Of one expert: the log p of its answers by the base, by itself, and along the way (nats an answer)."""

    base: float
    expert: float
    along: tuple[float, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """What of the expert's gain over the base is kept at each step: 1 is all."""
        gain = self.expert - self.base
        return tuple((value - self.base) / gain if gain > 0 else 1.0 for value in self.along)


def walk_path(
    loaded: Loaded, base: Expr, experts: Mapping[str, Expr], prompts: Mapping[str, Sequence[Example]],
    note: Callable[[int, int], None],
) -> dict[str, Kept]:  # fmt: skip
    """What is kept of every expert that has prompts, along the sum of all; `loaded` is the base."""
    spoken: dict[str, Spoken] = {}
    before, own = {}, {}
    total, done = len(prompts) + len(STEPS), 0
    for name, examples in prompts.items():
        with edited(loaded, base + (experts[name] - base)):
            spoken[name] = _answers(loaded, examples)
            own[name] = spoken[name].log_probability(loaded)
        before[name] = spoken[name].log_probability(loaded)
        note(done := done + 1, total)
    along: dict[str, list[float]] = {name: [] for name in prompts}
    for step in STEPS:
        merged = base
        for expert in experts.values():
            merged = merged + step * (expert - base)
        with edited(loaded, merged):
            for name, said in spoken.items():
                along[name].append(said.log_probability(loaded))
        note(done := done + 1, total)
    return {name: Kept(before[name], own[name], tuple(along[name])) for name in prompts}


def _answers(loaded: Loaded, examples: Sequence[Example]) -> Spoken:
    """The examples with the answers they bring, or with what the expert in hand says."""
    if all("response" in example for example in examples):
        return Spoken(tuple(encode(loaded, example) for example in examples))
    return effects.spoken(loaded, examples, effects.answers(loaded, examples, ANSWER), ANSWER)
