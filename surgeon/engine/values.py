"""A plan's values one tensor after another, for those who want numbers rather than an output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.engine.devices import choose
from surgeon.engine.measure import measure_model, measure_tensor
from surgeon.engine.reading import DiskReader, Files
from surgeon.planning.evaluation import Evaluator, Known
from surgeon.planning.plan import Plan
from surgeon.planning.step import Key, Target
from surgeon.store.header import Stored

#: Elements of the blocks that statistics look at.
BLOCK = 1 << 16


@dataclass(frozen=True)
class Values:
    """A plan with open files, a device, and what its statistics know of the whole model."""

    plan: Plan
    files: Files
    device: torch.device
    known: Known

    @classmethod
    def of(cls, plan: Plan, files: Files) -> Values:
        """The values of a plan, the statistics that span the model measured."""
        device = choose(plan.options.device)

        def evaluator_for(target: Target, known: Known) -> Evaluator:
            return Evaluator(plan.steps, DiskReader(files, device), known)

        known = measure_model(plan.steps, plan.targets, evaluator_for, BLOCK, lambda count: None)
        return cls(plan, files, device, known)

    def whole(self, key: Key) -> Tensor:
        """The value of a step: float32 of its shape (float64 behind a float64 input)."""
        evaluator = Evaluator(self.plan.steps, DiskReader(self.files, self.device), dict(self.known))
        measure_tensor(evaluator, key, BLOCK, lambda count: None)
        return evaluator.whole(key)

    def whole_of(self, stored: Stored) -> Tensor:
        """A stored tensor as floats."""
        out = torch.empty(stored.spec.count, device=self.device)
        DiskReader(self.files, self.device).read(stored, 0, stored.spec.count, out)
        return out.reshape(stored.spec.shape)
