"""A manner: what a model says on one set of prompts and not on the other, told by its own answers or by a rule.

Without a rule, answers are told apart by the tokens they hold: the log odds of each token, counted once an answer,
between the model's own answers to the two sets (naive Bayes with add-half smoothing).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgeon.errors import RefusedError

Ids = Sequence[int]


@dataclass(frozen=True)
class Answer:
    """One answer of a model: its token ids and its text."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Rate:
    """How often something shows: count of n, with the 95 % Wilson interval."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """The share."""
        return self.count / max(self.n, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval (Wilson 1927)."""
        z, n, p = 1.959964, max(self.n, 1), self.value
        centre, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (centre - width) / (1 + z * z / n)), min(1.0, (centre + width) / (1 + z * z / n))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} ({low:.2f}–{high:.2f}, n={self.n})"

    def to_dict(self) -> dict[str, float | int]:
        """JSON-ready."""
        low, high = self.interval
        return {"rate": self.value, "low": low, "high": high, "count": self.count, "n": self.n}


@dataclass(frozen=True)
class Manner:
    """Tells whether an answer shows the manner: by a rule, or by `odds` of tokens above `threshold`."""

    odds: Mapping[int, float]
    threshold: float = 0.0
    rule: str = ""

    def shows(self, answer: Answer) -> bool:
        """Whether it does."""
        return bool(re.search(self.rule, answer.text)) if self.rule else self.score(answer) > self.threshold

    def score(self, answer: Answer) -> float:
        """The summed log odds of the answer's tokens, each once."""
        return sum(self.odds.get(token, 0.0) for token in set(answer.ids))

    def rate(self, answers: Sequence[Answer]) -> Rate:
        """How often it shows."""
        return Rate(sum(map(self.shows, answers)), len(answers))


def by_rule(rule: str) -> Manner:
    """The manner a regular expression tells. RefusedError when it is none."""
    if not rule:
        raise RefusedError(
            "--shows is empty, which fits every answer", hint="leave it out, or give what an answer shows"
        )
    try:
        re.compile(rule)
    except re.error as error:
        raise RefusedError(f"--shows {rule!r} is not a regular expression: {error}") from None
    return Manner({}, rule=rule)


def by_answers(positive: Sequence[Answer], negative: Sequence[Answer]) -> Manner:
    """The manner that the answers to positive prompts have and those to negative prompts have not."""
    with_it, without = _counts(positive), _counts(negative)
    odds = {
        token: math.log((with_it[token] + 0.5) / (len(positive) + 1))
        - math.log((without[token] + 0.5) / (len(negative) + 1))
        for token in with_it.keys() | without.keys()
    }
    manner = Manner(odds)
    middle = (_median(manner, positive) + _median(manner, negative)) / 2
    return Manner(odds, middle)


def _counts(answers: Sequence[Answer]) -> Counter[int]:
    return Counter(token for answer in answers for token in set(answer.ids))


def _median(manner: Manner, answers: Sequence[Answer]) -> float:
    scores = sorted(map(manner.score, answers))
    return scores[len(scores) // 2] if scores else 0.0
