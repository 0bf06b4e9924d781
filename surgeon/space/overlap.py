"""Which entries several task vectors change: shared and unique ones."""

from __future__ import annotations

import torch
from torch import Tensor

from surgeon.space.numeric import total


def changed(task_vectors: Tensor, epsilon: float) -> Tensor:
    """The task vectors, [model, …], with changes of at most `epsilon` set to zero."""
    return torch.nn.functional.hardshrink(task_vectors, epsilon)


def contributors(changes: Tensor) -> Tensor:
    """How many models change each entry."""
    return total(torch.sign(changes).abs_())


def alone(count: Tensor) -> Tensor:
    """1 where one model changes an entry, 0 where several do (2 where none does)."""
    return torch.sub(2, count).relu_()
