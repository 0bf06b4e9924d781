"""The laws every edit keeps, or declares broken with a reason; run on whatever is registered.

A package that adds edits runs ``check(method)`` on each in its own tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from surgeon.space.edit import EditMethod
from surgeon.space.edit_kernels import Editing, EditingLast
from surgeon.space.kernels import Block, Call
from surgeon.space.parameters import Operand, Parameter
from surgeon.testing.laws import check_laws

Method = EditMethod[...]

#: Differences that a few fp32 operations make, as a share of the largest value.
_ROUNDING = 1e-5
#: Residual axis → shapes in which kernels meet it: one matrix, matrices of experts, a bias. The stream is 24 wide.
_SHAPES: Mapping[int, tuple[tuple[int, ...], ...]] = {-2: ((24, 35), (3, 24, 10)), -1: ((35, 24), (3, 10, 24), (24,))}


@dataclass(frozen=True)
class Case:
    """Operands and settings of one call: a weight [d, n], orthonormal columns [d, k], settings by argument."""

    weight: Tensor
    subspace: Tensor
    settings: Mapping[str, Any]

    def call(self, method: Method) -> Tensor:
        """The edited weight."""
        return method(**self.operands(method), **self.settings)

    def operands(self, method: Method) -> dict[str, Tensor]:
        """The tensors by argument."""
        given = {Operand.WEIGHT: self.weight, Operand.SUBSPACE: self.subspace}
        return {argument: given[kind].clone() for argument, kind in method.signature.operands}

    def having(self, method: Method, settings: Mapping[str, float]) -> Case:
        """The same with other settings, by name."""
        named = {method.parameters[name].argument: value for name, value in settings.items()}
        return replace(self, settings=dict(self.settings) | named)

    @property
    def inside(self) -> float:
        """The largest coordinate of the weight along the columns."""
        return float((self.subspace.T @ self.weight).abs().max())


def make_case(method: Method, rank: int = 3, shape: tuple[int, int] = (24, 35)) -> Case:
    """A random case."""
    generator = torch.Generator().manual_seed(rank)
    weight = torch.randn(shape, generator=generator)
    columns = torch.randn(shape[0], rank, generator=generator, dtype=torch.float64)
    settings = {p.argument: _sample(p) for p in method.signature.parameters}
    return Case(weight, torch.linalg.qr(columns).Q.float(), settings)


def _sample(parameter: Parameter) -> Any:
    """A setting at which an edit does something, and not the simplest thing."""
    if parameter.type is float and (parameter.required or parameter.name == "strength"):
        return 0.5 if parameter.range is None or 0.5 in parameter.range else 1.0
    if parameter.required:
        return parameter.choices[0] if parameter.choices else parameter.type(1)
    return parameter.default


def _same(found: Tensor, wanted: Tensor, what: str) -> None:
    """AssertionError, with the difference, unless two tensors are equal up to the rounding of a few fp32 operations."""
    assert found.shape == wanted.shape, f"{what}: the shape is {list(found.shape)}, not {list(wanted.shape)}"
    scale = max(float(wanted.abs().max()), 1.0)
    off = float((found - wanted).abs().max()) / scale
    assert off <= _ROUNDING, f"{what}: off by {off:.1e} of the largest value"


def shape_kept(method: Method) -> None:
    """The function gives a matrix of the weight's shape."""
    for rank in (1, 3):
        case = make_case(method, rank)
        found = method.function(**method.arguments(case.weight, case.subspace, None), **case.settings).shape
        assert found == case.weight.shape, f"{list(case.weight.shape)} becomes {list(found)} at k = {rank}"


def runs_on_meta(method: Method) -> None:
    """It runs without data, which planning needs."""
    case = make_case(method)
    moved = replace(case, weight=case.weight.to("meta"), subspace=case.subspace.to("meta"))
    try:
        device = moved.call(method).device.type
    except RuntimeError as error:
        raise AssertionError(f"it looks at data: {error}") from error
    assert device == "meta", f"the result is on {device}"


def inputs_untouched(method: Method) -> None:
    """Called on plain tensors, it leaves them as they were."""
    case = make_case(method)
    operands = case.operands(method)
    before = {name: tensor.clone() for name, tensor in operands.items()}
    method(**operands, **case.settings)
    changed = [name for name, tensor in before.items() if not torch.equal(operands[name], tensor)]
    assert not changed, f"{', '.join(changed)} changed"


def unchanged(method: Method) -> None:
    """At its `unchanged` settings (strength zero) it gives the same bytes."""
    case = make_case(method).having(method, method.unchanged)
    assert torch.equal(case.call(method), case.weight), f"at {dict(method.unchanged)} the weight changes"


def linear(method: Method) -> None:
    """An edit declared linear is: f(aV + bW) = a f(V) + b f(W)."""
    case = make_case(method)
    other = replace(case, weight=make_case(method, rank=2).weight)
    mixed = replace(case, weight=1.5 * case.weight - 0.5 * other.weight)
    _same(mixed.call(method), 1.5 * case.call(method) - 0.5 * other.call(method), "f(1.5 V − 0.5 W)")


def linear_in_strength(method: Method) -> None:
    """Its change grows with strength: W'(s) = W + s (W'(1) − W)."""
    case, allowed = make_case(method), method.parameters["strength"].range
    full = case.having(method, {"strength": 1.0}).call(method) - case.weight
    for strength in (-1.0, 0.25, 2.0):
        if allowed is None or strength in allowed:
            found = case.having(method, {"strength": strength}).call(method)
            _same(found, case.weight + strength * full, f"at strength {strength}")


def removes(method: Method) -> None:
    """At its `removes` settings nothing is left along the columns: RᵀW' = 0."""
    for rank in (1, 3):
        case = make_case(method, rank).having(method, method.removes)
        left = replace(case, weight=case.call(method)).inside / case.inside
        assert left <= _ROUNDING, f"at {dict(method.removes)} and k = {rank}, RᵀW' is {left:.1e} of RᵀW"


def idempotent(method: Method) -> None:
    """What is removed once need not be removed again: f(f(W)) = f(W) at its `removes` settings."""
    case = make_case(method).having(method, method.removes)
    once = case.call(method)
    _same(replace(case, weight=once).call(method), once, "the second time")


def rotation(method: Method) -> None:
    """It does not depend on the stream's basis: f(UW, UR) = U f(W, R) for a rotation U."""
    case = make_case(method)
    width = len(case.weight)
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    turn = torch.linalg.qr(drawn).Q.float()
    turned = replace(case, weight=turn @ case.weight, subspace=turn @ case.subspace)
    _same(turned.call(method), turn @ case.call(method), "in another basis")


def blockwise(method: Method) -> None:
    """The kernels, which see bands of rows in either layout, give what the function gives of each whole matrix."""
    for rank in (1, 3):
        case = make_case(method, rank)
        for axis, shapes in _SHAPES.items():
            for shape in shapes:
                tensor = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
                wanted = _matrix_by_matrix(method, case, tensor, axis)
                for rows in (7, 24, math.prod(shape)):
                    found = _in_bands(method, case, tensor, axis, rows)
                    _same(found, wanted, f"{list(shape)}, residual axis {axis}, k = {rank}, {rows} rows at once")


#: Name of each law, as an edit's `breaks` spells it.
LAWS: Mapping[str, Callable[[Method], None]] = {
    law.__name__: law
    for law in (
        shape_kept,
        runs_on_meta,
        inputs_untouched,
        unchanged,
        linear,
        linear_in_strength,
        removes,
        idempotent,
        rotation,
        blockwise,
    )
}


def applies(law: str, method: Method) -> bool:
    """Whether a law speaks of an edit at all: it is declared, or has the setting, and is not declared broken."""
    speaks = {
        "unchanged": bool(method.unchanged),
        "linear": method.linear,
        "linear_in_strength": "strength" in method.parameters,
        "removes": bool(method.removes),
        "idempotent": bool(method.removes),
    }
    return law not in method.breaks and speaks.get(law, True)


def check(method: Method) -> None:
    """Run every law that applies. AssertionError names the law; a break of an unknown law is a ValueError."""
    check_laws(method, LAWS, applies)


def _matrix_by_matrix(method: Method, case: Case, tensor: Tensor, axis: int) -> Tensor:
    """The function on every matrix [d, n] of a tensor."""
    if axis == -1:
        vectors = tensor.reshape(-1, tensor.shape[-1])
        return replace(case, weight=vectors.T.contiguous()).call(method).T.reshape(tensor.shape)
    matrices = tensor.reshape(-1, *tensor.shape[-2:])
    edited = [replace(case, weight=matrix).call(method) for matrix in matrices]
    return torch.stack(edited).reshape(tensor.shape)


def _in_bands(method: Method, case: Case, tensor: Tensor, axis: int, rows: int) -> Tensor:
    """The kernel on bands of so many rows: first what its statistics see, then the values."""
    kernel = EditingLast(method) if axis == -1 else Editing(method)
    settings = dict(case.settings) | {"frame rank": case.subspace.shape[1]}
    if axis == -2:
        settings |= {"frame residual": tensor.shape[-2], "frame columns": tensor.shape[-1]}
    bands = list(_bands(tensor, rows if kernel.blocks == "rows" else tensor.numel()))
    if kernel.blocks == "whole":
        bands = [(tensor[None], bands[0][1])]
    call = Call(settings, bands[0][1], [case.subspace.double()] if method.needs_directions else [])
    known = {}
    for name, statistic in kernel.statistics.items():
        found = statistic.begin(1, tensor.numel(), settings)
        partials: dict[Any, Any] = {}
        for stack, block in bands:
            seen: Any = (kernel.observed(stack.clone(), replace(call, block=block), statistic),)
            place = (0, block.start)
            statistic.collect(found, partials, place, statistic.observe(found, seen[0], place))
        known[name] = statistic.conclude(found, partials)
    values = [kernel(stack.clone(), replace(call, block=block, known=known)).reshape(-1) for stack, block in bands]
    return torch.cat(values).reshape(tensor.shape)


def _bands(tensor: Tensor, rows: int) -> Iterator[tuple[Tensor, Block]]:
    """Bands of whole rows as a kernel's stack [1, rows, columns], each with where it lies; a vector is one band."""
    shape, count = tuple(tensor.shape), tensor.numel()
    if len(shape) == 1:
        yield tensor[None], Block("w", shape, 0, count)
        return
    size = rows * shape[-1]
    for start in range(0, count, size):
        stop = min(start + size, count)
        yield tensor.reshape(-1)[start:stop].reshape(1, -1, shape[-1]), Block("w", shape, start, stop)
