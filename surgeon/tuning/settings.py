"""What a tuning is asked for: the keys of a recipe's `tune:` and the options of the verb."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from surgeon.tuning.grain import Grain
from surgeon.tuning.learn import Pace


@dataclass(frozen=True)
class Tuning:
    """`prompts` are files by expert; `budget` is the chat KL (nats a token) above which a choice loses in a search."""

    prompts: Mapping[str, Path] = field(default_factory=dict)
    neutral: Path | None = None
    per: Grain = "row"
    steps: int = 60
    rate: float = 0.03
    guard: float = 4.0
    batch: int = 4
    trials: int = 40
    budget: float = 0.04
    score: Literal["mean", "worst"] = "mean"
    tokens: int = 48
    seed: int = 0

    @property
    def pace(self) -> Pace:
        """How fast it learns."""
        return Pace(self.steps, self.rate, self.batch, self.seed)
