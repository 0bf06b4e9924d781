"""A recipe's value at one tensor, taken apart: where it starts from, and the changes that it adds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from surgeon.planning.evaluation import Evaluator
from surgeon.planning.plan import Plan
from surgeon.planning.step import Key, Step, Target, below
from surgeon.space.kernels import Merging, kernel_named
from surgeon.space.parameters import Operand
from surgeon.store.adapter import Adapter

_TRANSPOSED = "the update is transposed"
_GAINS = "the gain of the output norm behind it is left out, W' = (I − RRᵀ)W"


@dataclass(frozen=True)
class Term:
    """One change: coefficient · value, or coefficient · (value − start). `scale` is an adapter's α/r.

    `factors` are the numbers that the coefficient is made of, each of which 16-bit work rounds.
    """

    label: str
    key: Key
    coefficient: float
    difference: bool
    scale: float | None = None
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class Anatomy:
    """A target's start and terms; `steps` are the plan's and those of the mistakes.

    `mistakes` maps the place of a term to the change as some tools get it wrong; the label says how. `members` are what
    work in a narrow dtype rounds, and `on_start` is how often it rounds the start on the way. `exact` is the value
    before compensated rounding, `key` where there is none.
    """

    key: Key
    exact: Key
    start: Key
    steps: Mapping[Key, Step]
    terms: tuple[Term, ...]
    mistakes: Mapping[int, Term]
    members: tuple[Term, ...]
    on_start: int


def changes(evaluator: Evaluator, terms: Sequence[Term], begin: Tensor, span: tuple[int, int]) -> list[Tensor]:
    """Each term on a block, as float64; `begin` is the start there."""
    values = [evaluator.value(term.key, *span).double().cpu() for term in terms]
    return [
        (value if term.difference else value - begin) * term.coefficient
        for term, value in zip(terms, values, strict=True)
    ]


def take_apart(plan: Plan, target: Target) -> Anatomy:
    """The start and the terms of a computed target."""
    step, steps = before_rounding(plan.steps, target.key), dict(plan.steps)
    values = step.values
    keys = [need.key for need in step.inputs if not need.whole and need.rows is None] or [step.key]
    keys = keys[: values.get("models")]  # behind the models may come what was measured on each
    shares = _shares(step)
    if shares is None:
        # A method that is not linear in its members makes one change, whose strength is all that can be told.
        factors = tuple(values[name] for name in ("lambda_", "t") if values.get(name))
        terms = [Term(target.reason, step.key, 1.0, False, factors=factors)]
    else:
        terms = [
            replace(_term(plan, key, math.prod(share) / mass, kind), factors=(*share, mass))
            for key, (share, mass), kind in zip(keys[1:], shares, _kinds(step, len(shares)), strict=True)
        ]
    members, on_start = terms, values.get("points", 0) + len(terms) - 1
    if step.kernel.startswith("merge:"):
        kinds, weights = values["differences"], values.get("weight", ())
        size = [2 * max(1.0, abs(weights[index]) if weights else 1.0) for index in range(len(kinds))]
        members = [Term("", *one) for one in zip(keys[-len(kinds) :] if kinds else (), size, kinds, strict=True)]
        on_start = int(not _on_task_vectors(step))
    mistakes = {}
    for place, term in enumerate(terms):
        changed = steps[term.key]
        if changed.kernel == "low_rank" and len(set(changed.spec.shape)) == 1:
            mistakes[place] = replace(term, key=_transposed(steps, term.key), label=_TRANSPOSED)
        elif changed.kernel.startswith("edit:") and any(steps[need.key].inputs for need in changed.inputs[1:]):
            mistakes[place] = replace(term, key=_without_gains(steps, term.key), label=_GAINS)
    return Anatomy(target.key, step.key, keys[0], steps, tuple(terms), mistakes, tuple(members), on_start)


def before_rounding(steps: Mapping[Key, Step], key: Key) -> Step:
    """The step of a value, or where that is compensated rounding the one whose value is rounded."""
    step = steps[key]
    return steps[step.inputs[0].key] if step.kernel.startswith("round:") else step


def _shares(step: Step) -> list[tuple[tuple[float, ...], float]] | None:
    """(factors, divisor) of each member after the first input, for what is linear in them."""
    values = step.values
    if step.kernel == "combine" and values["anchored"]:
        return [((coefficient,), 1.0) for coefficient in values["coefficients"]]
    if step.kernel == "merge:task_arithmetic":
        mass = sum(values["weight"]) if values["normalize"] else 1.0
        return [((weight, values["lambda_"]), mass if abs(mass) >= 1e-8 else 1.0) for weight in values["weight"]]
    if step.kernel == "merge:linear" and (values["normalize"] or sum(values["weight"]) == 1):
        return [((weight,), sum(values["weight"])) for weight in values["weight"][1:]]
    return None


def _kinds(step: Step, count: int) -> Sequence[bool]:
    """Of each member after the first input, whether it is a difference."""
    if step.kernel == "combine":
        return [index >= step.values["points"] for index in range(count)]
    return step.values["differences"][-count:]


def _on_task_vectors(step: Step) -> bool:
    """Changes are small beside the start, and so are their roundings; the start is only rounded among points."""
    kernel = kernel_named(step.kernel)
    return isinstance(kernel, Merging) and kernel.method.signature.asks(Operand.TASK_VECTORS)


def _transposed(steps: dict[Key, Step], key: Key) -> Key:
    step, turned = steps[key], Key(key.node, f"{key.tensor}\0turned")
    settings = dict(step.values) | {"transposed": not step.values["transposed"]}
    steps[turned] = step._replace(key=turned, settings=tuple(sorted(settings.items())))
    return turned


def _without_gains(steps: dict[Key, Step], key: Key) -> Key:
    """The edit along the directions as they are, whatever output norm comes behind the tensor."""
    step = steps[key]
    value, frame = step.inputs
    plain, edited = Key(key.node, f"{key.tensor}\0plain frame"), Key(key.node, f"{key.tensor}\0plain")
    steps[plain] = steps[frame.key]._replace(key=plain, inputs=())
    steps[edited] = step._replace(key=edited, inputs=(value, frame._replace(key=plain)))
    return edited


def _term(plan: Plan, key: Key, coefficient: float, difference: bool) -> Term:
    """`label`: the names of the sources a value is read from; of an adapter on a base, the adapter's."""
    files = {step.stored.file for step in below(plan.steps, key) if step.stored is not None}
    read = {
        str(model): source
        for model, source in plan.sources.items()
        if files & {stored.file for _, stored in source.stored.items()}
    }
    adapters = [name for name, source in read.items() if isinstance(source, Adapter)]
    step = plan.steps[key]
    scale = step.values["scale"] if step.kernel == "low_rank" else None
    return Term(" and ".join(adapters or read) or "the change", key, coefficient, difference, scale)
