"""Learning coefficients: each expert distilled on its own prompts, with the base as a guard on neutral ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from surgeon.runtime.load import Loaded
from surgeon.tuning.grain import Free
from surgeon.tuning.lessons import Lesson, loss
from surgeon.tuning.mixture import Changes, Mixture

Note = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pace:
    """How coefficients are learned: Adam's steps and first rate (it falls to zero), prompts a lesson and step, seed."""

    steps: int = 60
    rate: float = 0.03
    batch: int = 4
    seed: int = 0


def learn(
    loaded: Loaded, changes: Changes, free: Free, lessons: Sequence[Lesson], pace: Pace, note: Note
) -> list[float]:
    """Change the leaves of `free` for the better; gives the loss of every step.

    The loss is the mean over the experts of KL(expert ‖ merged), nats a token on a batch of its prompts, plus
    `weight` · KL(base ‖ merged) of the guard.
    """
    optimizer = torch.optim.Adam(free.leaves.values(), lr=pace.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(pace.steps, 1))
    batches = [lesson.batches(pace.batch, pace.seed) for lesson in lessons]
    losses: list[float] = []
    with Mixture(loaded, changes, free) as mixture:
        for step in range(pace.steps):
            optimizer.zero_grad()
            total = 0.0
            for lesson, drawn in zip(lessons, batches, strict=True):
                one = lesson.weight * loss(loaded, next(drawn))
                one.backward()
                total += one.item()
            mixture.collect()
            optimizer.step()
            schedule.step()
            mixture.refresh()
            losses.append(total)
            note("steps", step + 1, pace.steps)
    return losses
