"""A recipe's value at one tensor, taken apart: where it starts from, and the changes that it adds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from surgeon.planning.evaluation import Evaluator
from surgeon.planning.plan import Plan
from surgeon.planning.step import Key, Step, Target, below
from surgeon.space.kernels import Merging, kernel_named
from surgeon.space.parameters import Operand
from surgeon.store.adapter import Adapter
from surgeon.store.checkpoint import Checkpoint


@dataclass(frozen=True)
class Term:
    """One change: coefficient · value, or coefficient · (value − start). `scale` is an adapter's α/r.

    `key` is None for the whole change that a merge method makes. `turned` computes the same update transposed.
    `factors` are the numbers that the coefficient is made of, each of which 16-bit work rounds.
    """

    label: str
    key: Key | None
    coefficient: float
    difference: bool
    scale: float | None = None
    turned: Key | None = None
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class Anatomy:
    """A target's start and terms; `steps` are the plan's and those of the transposed updates."""

    target: Target
    start: Key
    terms: tuple[Term, ...]
    steps: Mapping[Key, Step]

    def values(self, evaluator: Evaluator, start: int, stop: int) -> tuple[Tensor, list[Tensor]]:
        """The start and each term on a block, as float64."""
        base = evaluator.value(self.start, start, stop).double()
        changes = []
        for term in self.terms:
            value = evaluator.value(term.key or self.target.key, start, stop).double()
            changes.append((value if term.difference else value - base) * term.coefficient)
        return base, changes

    def rounded_size(self, evaluator: Evaluator, start: int, stop: int) -> Tensor:
        """Σ|intermediate results| of work in a narrow dtype, the last sum apart, which is the stored value's rounding.

        Changes are small beside the start, so their roundings are too; the start itself is rounded on the way only
        where points are weighed and summed, or where one change is added after another.
        """
        step = self.steps[self.target.key]
        base, changes = self.values(evaluator, start, stop)
        size = torch.stack([change.abs() for change in changes]).sum(0)
        if step.kernel != "combine":
            size = size + self._members(evaluator, step, base, start, stop)
            return size + base.abs() * (not _on_task_vectors(step))
        return size + base.abs() * (step.values["points"] + len(changes) - 1)

    def _members(self, evaluator: Evaluator, step: Step, base: Tensor, start: int, stop: int) -> Tensor:
        """Σ weight · |member − base|: a merge of task vectors handles them before it drops some."""
        total = torch.zeros_like(base)
        values = step.values
        keys = [need.key for need in step.inputs if not need.whole]
        others, weights = keys[len(keys) - len(values["differences"]) :], values.get("weight", ())
        for index, key in enumerate(others):
            value = evaluator.value(key, start, stop).double()
            own = value if values["differences"][index] else value - base
            total += own.abs() * max(1.0, abs(weights[index]) if weights else 1.0)
        return total


def _on_task_vectors(step: Step) -> bool:
    kernel = kernel_named(step.kernel)
    return isinstance(kernel, Merging) and kernel.method.signature.asks(Operand.TASK_VECTORS)


def take_apart(plan: Plan, target: Target) -> Anatomy:
    """The start and the terms of a computed target."""
    step, steps = plan.steps[target.key], dict(plan.steps)
    keys = [need.key for need in step.inputs if not need.whole]
    values = step.values
    if step.kernel == "load":
        return Anatomy(target, step.key, (), steps)
    if step.kernel == "combine" and values["anchored"]:
        numbered = zip(keys[1:], values["coefficients"], strict=True)
        terms = [_term(plan, steps, key, c, index >= values["points"]) for index, (key, c) in enumerate(numbered)]
        return Anatomy(target, keys[0], tuple(terms), steps)
    shares = _shares(step)
    if shares is None:
        factors = tuple(values[name] for name in ("lambda_", "t") if values.get(name))
        return Anatomy(target, keys[0], (Term(target.reason, None, 1.0, False, factors=factors),), steps)
    kinds = values["differences"][-len(shares) :]
    terms = [
        replace(_term(plan, steps, key, math.prod(share) / mass, kind), factors=(*share, mass))
        for key, (share, mass), kind in zip(keys[1:], shares, kinds, strict=True)
    ]
    return Anatomy(target, keys[0], tuple(terms), steps)


def _shares(step: Step) -> list[tuple[tuple[float, ...], float]] | None:
    """(factors, divisor) of each member after the first input, for the methods that are linear in them."""
    values = step.values
    if step.kernel == "merge:task_arithmetic":
        mass = sum(values["weight"]) if values["normalize"] else 1.0
        return [((weight, values["lambda_"]), mass if abs(mass) >= 1e-8 else 1.0) for weight in values["weight"]]
    if step.kernel == "merge:linear" and (values["normalize"] or sum(values["weight"]) == 1):
        return [((weight,), sum(values["weight"])) for weight in values["weight"][1:]]
    return None


def _term(plan: Plan, steps: dict[Key, Step], key: Key, coefficient: float, difference: bool) -> Term:
    step = steps[key]
    low_rank = step.kernel == "low_rank"
    turned = None
    if low_rank and len(set(step.spec.shape)) == 1:
        turned = Key(key.node, f"{key.tensor}\0turned")
        settings = dict(step.values) | {"transposed": not step.values["transposed"]}
        steps[turned] = step._replace(key=turned, settings=tuple(sorted(settings.items())))
    scale = step.values["scale"] if low_rank else None
    return Term(_label(plan, steps, key), key, coefficient, difference, scale, turned, (coefficient,))


def _label(plan: Plan, steps: Mapping[Key, Step], key: Key) -> str:
    """The names of the sources a value is read from; of an adapter on a base, the adapter's."""
    files = {step.stored.file for step in below(steps, key) if step.stored is not None}
    adapters = [
        str(model)
        for model, source in plan.sources.items()
        if isinstance(source, Adapter) and source.root in {f.parent for f in files}
    ]
    models = [
        str(model)
        for model, source in plan.sources.items()
        if isinstance(source, Checkpoint) and files & {stored.file for stored in source.tensors.values()}
    ]
    return " and ".join(adapters or models) or "the change"
