"""A sink that keeps a plan's tensors in memory, for a look at some of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from surgeon.engine.run import run
from surgeon.planning.plan import Plan
from surgeon.store.files import Files
from surgeon.store.header import Stored
from surgeon.tensors import TensorSpec, torch_dtype


class MemorySink:
    """Takes the tensors of these specs."""

    def __init__(self, specs: dict[str, TensorSpec]) -> None:
        self._specs = specs
        self._raw = {name: bytearray(spec.nbytes) for name, spec in specs.items()}

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Bytes of a tensor, from byte `start` on."""
        self._raw[tensor][start : start + len(data)] = data

    def copy(self, tensor: str, source: Stored) -> None:
        """A whole tensor's bytes, as they lie elsewhere."""
        with closing(Files()) as files:
            files.fill(source, 0, memoryview(self._raw[tensor]))

    def sync(self, files: Iterable[str]) -> None:
        """Nothing to wait for."""

    def tensors(self) -> dict[str, Tensor]:
        """What was written."""
        return {
            name: torch.frombuffer(self._raw[name], dtype=torch_dtype(spec.dtype)).reshape(spec.shape)
            for name, spec in self._specs.items()
            if spec.count
        }


def tensors_of(plan: Plan, names: Collection[str]) -> dict[str, Tensor]:
    """Some of the tensors of a plan's result, computed now."""
    targets = tuple(target for target in plan.targets if target.name in names)
    sink = MemorySink({target.name: target.spec for target in targets})
    run(replace(plan, targets=targets), sink)
    return sink.tensors()
