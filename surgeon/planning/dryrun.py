"""A dry run: every distinct step is computed once without data, which checks shapes and counts live bytes.

Whole-tensor kernels run on `meta`. Steps computed in blocks run one small block of zeros on the CPU: that is as cheap,
and the first functional operation on `meta` would import torch's compiler, 1.5 s in every process.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from surgeon.errors import MismatchError, RefusedError, SurgeonError
from surgeon.planning.evaluation import Evaluator, Known, measured, tile_elements
from surgeon.planning.step import Key, Step, Target, below
from surgeon.space.kernels import kernel_named
from surgeon.space.numeric import one_torch_thread
from surgeon.store.header import Stored

#: Elements of the block that a dry run computes.
_SMALL = 1 << 18


class _Live(TorchDispatchMode):
    """Counts the bytes of storages alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch imports its compiler to mark this class as not to be compiled.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, nbytes: int) -> None:
        self._seen.discard(key)
        self.now -= nbytes


class _NoData:
    """A reader of zeros."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def read(self, stored: Stored, start: int, stop: int, out: Tensor) -> None:
        """Fill `out` with zeros."""
        out.zero_()


def begin_statistics(steps: Mapping[Key, Step], key: Key) -> Known:
    """What is known before the first round, of every statistic below a value."""
    known: Known = {}
    for step in measured(steps, key):
        kernel = kernel_named(step.kernel)
        width = kernel.width(len([need for need in step.inputs if not need.whole]), step.values)
        for name, statistic in kernel.statistics.items():
            known[step.key, name] = statistic.begin(width, step.spec.count, step.values)
    return known


def live_bytes(steps: Mapping[Key, Step], target: Target, block: int) -> int:
    """The most bytes alive while one block of a target is computed, statistics included.

    Raises MismatchError, naming the tensor, when a kernel fails on these shapes or gives another shape; RefusedError
    when a method refuses its settings.
    """
    block = min(block, target.spec.count)
    told = _told(steps, target, block)
    if told is not None:
        return told
    whole = _holds_much(steps, target.key)
    count = block if whole else min(block, _SMALL)
    try:
        with one_torch_thread(), torch.no_grad(), _Live() as live:
            known = begin_statistics(steps, target.key)
            evaluator = Evaluator(steps, _NoData("meta" if whole else "cpu"), known)
            value = evaluator.value(target.key, 0, count)
            peak = live.peak * block // max(count, 1)
    except SurgeonError:
        raise
    except ValueError as error:
        # A method's own refusal of its settings, such as weights that cancel.
        hint = "change this setting, or give this tensor a rule of its own"
        raise RefusedError(f"{target.name} ({target.reason}): {error}", hint=hint) from error
    except Exception as error:
        raise MismatchError(f"{target.name}: {target.reason} does not run on these shapes: {error}") from error
    if value.numel() != count:
        raise MismatchError(f"{target.name}: {target.reason} gives {value.numel()} values for {count}")
    for step in measured(steps, target.key):
        width = len(step.inputs)
        for statistic in kernel_named(step.kernel).statistics.values():
            if statistic.active(step.values):
                peak = max(peak, 4 * width * block + statistic.scratch(width, target.spec.count, block))
    return peak


def _told(steps: Mapping[Key, Step], target: Target, block: int) -> int | None:
    """The same where the last kernel says what it takes; its input is what a run has to tell."""
    step = steps[target.key]
    kernel = kernel_named(step.kernel) if step.kernel != "load" else None
    if kernel is None or kernel.scratch is None:
        return None
    tile = tile_elements(step.spec.shape, kernel.tile)
    held = min(tile, step.spec.count) if kernel.blocks == "rows" else step.spec.count
    below_it = live_bytes(steps, replace(target, key=step.inputs[0].key), block)
    return below_it + held * (8 if step.wide else 4) + kernel.scratch


def _holds_much(steps: Mapping[Key, Step], key: Key) -> bool:
    """Whether whole tensors are held that are larger than one small block."""
    for step in below(steps, key):
        whole = step.kernel != "load" and kernel_named(step.kernel).blocks == "whole"
        held = [steps[need.key].spec.count for need in step.inputs if need.whole]
        if max([step.spec.count] if whole else held, default=0) > 4 * _SMALL:
            return True
    return False
