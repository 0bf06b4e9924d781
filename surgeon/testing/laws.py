"""The laws every merge method keeps, or declares broken with a reason; run on whatever is registered.

A package that adds methods runs ``check(method)`` on each in its own tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.artifacts.banded import Banded
from surgeon.engine.measure import measure_model, measure_tensor
from surgeon.planning.evaluation import Evaluator, Known, ranges
from surgeon.planning.step import Input, Key, Step, Target
from surgeon.space.method import MergeMethod
from surgeon.space.noise import Noise
from surgeon.space.parameters import Each, Operand, Parameter
from surgeon.store.header import Stored
from surgeon.tensors import TensorSpec

Method = MergeMethod[...]

_TENSOR = "w"


@dataclass(frozen=True)
class Case:
    """Operands and settings of one call: a base, models around it with a name each, settings by argument."""

    base: Tensor
    vectors: Tensor
    settings: Mapping[str, Any]
    labels: tuple[str, ...]

    def call(self, method: Method) -> Tensor:
        """The result of the function on this case: a task vector or a model, as the method works."""
        return method(**self.operands(method), **self.settings)

    def operands(self, method: Method) -> dict[str, Any]:
        """The tensors by argument, and the noise."""
        models = self.base + self.vectors
        given = {Operand.MODELS: models, Operand.BASE: self.base}
        given |= dict.fromkeys((Operand.TASK_VECTORS, Operand.VECTORS), self.vectors)
        tensors = {argument: given[kind].clone() for argument, kind in method.signature.operands}
        noise = method.signature.noise
        return tensors | ({noise: Noise(0, _TENSOR, self.labels)} if noise else {})


def make_case(method: Method, shape: tuple[int, ...] = (24, 36), models: int | None = None) -> Case:
    """A random case with as many models as suit the method (three where it may)."""
    low, high = method.models
    count = models or min(max(low, 3), high or 3)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator)
    vectors = torch.randn((count, *shape), generator=generator).bfloat16().float()
    settings = {p.argument: _sample(p, count, shape, generator) for p in method.signature.parameters}
    return Case(base, vectors, settings, tuple(map(str, range(count))))


def _sample(parameter: Parameter, count: int, shape: tuple[int, ...], generator: torch.Generator) -> Any:
    if parameter.per_tensor:
        entries = tuple(parameter.type.example(shape, generator) for _ in range(count))
        return entries if parameter.per_model else None
    if issubclass(parameter.type, Banded):
        return parameter.type.sample(tuple(map(str, range(count))), _TENSOR, shape)
    value = parameter.default.value if isinstance(parameter.default, Each) else parameter.default
    if parameter.type is float and (parameter.required or parameter.range):
        value = 0.5 if parameter.range is None or 0.5 in parameter.range else 1.0
    if not parameter.per_model:
        return value
    return tuple(value * (1 - 0.1 * index) for index in range(count)) if parameter.type is float else (value,) * count


def _close(left: Tensor, right: Tensor) -> bool:
    """Equal up to the rounding of a few fp32 operations."""
    return torch.allclose(left, right, rtol=1e-5, atol=1e-6)


def _change(method: Method, case: Case, change: Tensor) -> Tensor:
    """What a method gives where the model changes by this: the change itself, or base + change, as it works."""
    return change if method.subtracts() else case.base + change


def shape_kept(method: Method) -> None:
    """The result has the shape of one model."""
    case = make_case(method)
    assert case.call(method).shape == case.base.shape


def runs_on_meta(method: Method) -> None:
    """It runs without data, which planning needs."""
    case = make_case(method)
    entries = {p.argument: _to_meta(case.settings[p.argument]) for p in method.per_tensor}
    settings = {**case.settings, **entries}
    moved = replace(case, base=case.base.to("meta"), vectors=case.vectors.to("meta"), settings=settings)
    assert moved.call(method).device.type == "meta"


def _to_meta(entries: Sequence[Tensor] | None) -> Sequence[Tensor] | None:
    return None if entries is None else tuple(entry.to("meta") for entry in entries)


def model_order(method: Method) -> None:
    """The order of the models is irrelevant."""
    case = make_case(method)
    turned = list(reversed(range(len(case.vectors))))
    per_model = {p.argument for p in method.signature.parameters if p.per_model}
    settings = {k: tuple(v[i] for i in turned) if k in per_model else v for k, v in case.settings.items()}
    labels = tuple(case.labels[i] for i in turned)
    again = replace(case, vectors=case.vectors[turned], settings=settings, labels=labels)
    assert _close(case.call(method), again.call(method))


def zero(method: Method) -> None:
    """Models equal to the base give the base; zero task vectors give zero."""
    case = make_case(method)
    still = replace(case, vectors=torch.zeros_like(case.vectors))
    assert torch.equal(still.call(method), _change(method, case, torch.zeros_like(case.base)))


def one_model(method: Method) -> None:
    """One model at weight 1, with nothing thinned out, gives itself."""
    case = make_case(method, models=1)
    plain = {p.argument: (1.0,) for p in method.signature.parameters if p.per_model and p.type is float}
    alone = replace(case, settings=dict(case.settings) | plain)
    assert _close(alone.call(method), _change(method, case, case.vectors[0]))


def scaling(method: Method) -> None:
    """Twice the input gives twice the output, bit for bit."""
    case = make_case(method)
    doubled = replace(case, base=case.base * 2, vectors=case.vectors * 2)
    assert torch.equal(doubled.call(method), case.call(method) * 2)


def inputs_untouched(method: Method) -> None:
    """Called on plain tensors, it leaves them as they were."""
    case = make_case(method)
    operands = case.operands(method)
    before = {name: tensor.clone() for name, tensor in operands.items() if isinstance(tensor, Tensor)}
    method(**operands, **case.settings)
    assert all(torch.equal(operands[name], tensor) for name, tensor in before.items())


def blockwise(method: Method) -> None:
    """Computed in blocks of any size, the result is the same bits as of the whole tensor."""
    case = make_case(method, shape=(96, 128))
    whole = _through_steps(method, case, 96 * 128)
    for block in (4096, 8192):
        assert torch.equal(_through_steps(method, case, block), whole)
    plain = replace(case, vectors=(case.base + case.vectors) - case.base).call(method)
    assert torch.equal(whole, plain + case.base if method.subtracts() else plain)


def basis(method: Method) -> None:
    """A change of basis goes through, f(QτRᵀ) = Q f(τ) Rᵀ, as its `equivariant` says; embeddings too."""
    case = make_case(method, shape=(7, 5))
    _goes_through(method, case, 7, 5)
    # Sums of low rank in a larger space, where most directions mean nothing.
    low = [vector[:, :1] @ vector[:1] for vector in case.vectors]
    _goes_through(method, replace(case, vectors=torch.stack(low)), 24, 36)


def _goes_through(method: Method, case: Case, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(1)
    small = case.base.shape
    left = torch.linalg.qr(torch.randn(rows, small[0], generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, small[1], generator=generator, dtype=torch.float64)).Q
    right = right if method.equivariant == "both" else torch.eye(small[1], dtype=torch.float64)
    vectors = (left @ case.vectors.double() @ right.T).float()
    turned = replace(case, base=torch.zeros_like(vectors[0]), vectors=vectors)
    expected = left @ case.call(method).double() @ right.T
    assert torch.dist(turned.call(method), expected) <= 1e-4 * expected.norm()


#: Name of each law, as a method's `breaks` spells it.
LAWS: Mapping[str, Callable[[Method], None]] = {
    law.__name__: law
    for law in (shape_kept, runs_on_meta, model_order, zero, one_model, scaling, inputs_untouched, blockwise, basis)
}


def applies(law: str, method: Method) -> bool:
    """Whether a law speaks of a method at all: one model is no case for a method of exactly two."""
    if (law == "one_model" and method.models[0] > 1) or (law == "basis" and not method.equivariant):
        return False
    return law not in method.breaks


def check(method: Method) -> None:
    """Run every law that applies. AssertionError names the law; a break of an unknown law is a ValueError."""
    check_laws(method, LAWS, applies)


def check_laws(method: Any, laws: Mapping[str, Callable[[Any], None]], applies: Callable[[str, Any], bool]) -> None:
    """Run these laws on whatever has a `name` and says which it `breaks`."""
    if unknown := set(method.breaks) - set(laws):
        raise ValueError(f"{method.name} declares breaks of {', '.join(sorted(unknown))}, which are no laws")
    for name, law in laws.items():
        if applies(name, method):
            try:
                law(method)
            except AssertionError as error:
                raise AssertionError(f"{method.name} breaks the law {name!r}: {law.__doc__} {error}") from error


class _InMemory:
    """A reader whose stored tensors are in a list, numbered by their offset."""

    device = torch.device("cpu")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors

    def read(self, stored: Stored, start: int, stop: int, out: Tensor) -> None:
        """Fill `out` with elements start to stop."""
        out.copy_(self._tensors[stored.offset].reshape(-1)[start:stop])


def _through_steps(method: Method, case: Case, block: int) -> Tensor:
    """The merge as the engine does it: load steps, one merge step, statistics in rounds, blocks."""
    models = [*([case.base] if method.takes_base else []), *(case.base + case.vectors)]
    extra: dict[str, Any] = {"differences": (False,) * len(case.vectors), "labels": case.labels, "seed": 0}
    entries: list[Tensor] = []
    for parameter in method.per_tensor:
        held = case.settings[parameter.argument]
        extra[parameter.argument] = None if held is None else tuple(range(len(entries), len(entries) + len(held)))
        entries += held or ()
    whole = any(not parameter.type.aligned for parameter in method.per_tensor)
    tensors, inputs, steps = [*models, *entries], [], {}
    for number, tensor in enumerate(tensors):
        spec, key = TensorSpec("F32", tuple(tensor.shape)), Key(number, _TENSOR)
        steps[key] = Step(key, spec, "load", stored=Stored(Path("memory"), number, spec))
        inputs.append(Input(key, whole=whole and number >= len(models)))
    extra["models"] = len(models)
    last, spec = Key(len(tensors), _TENSOR), TensorSpec("F32", tuple(case.base.shape))
    settings = tuple((dict(case.settings) | extra).items())
    steps[last] = Step(last, spec, f"merge:{method.name}", tuple(inputs), settings)
    target = Target(_TENSOR, spec, last, "compute", method.name)

    def evaluator(target: Target, known: Known) -> Evaluator:
        return Evaluator(steps, _InMemory(tensors), known)

    working = evaluator(target, measure_model(steps, [target], evaluator, block, lambda count: None))
    measure_tensor(working, target.key, block, lambda count: None)
    pieces = [working.value(last, start, stop).clone() for start, stop in ranges(spec.count, block)]
    return torch.cat(pieces).reshape(case.base.shape)
