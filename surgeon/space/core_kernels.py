"""Merging adapters in the space their factors span: no product of factors is formed, no large SVD is taken.

Low-rank changes Δₜ = LₜRₜ lie in the span Q of all Lₜ and, seen from the other side, in the span P of all Rₜᵀ. A method
with f(QCPᵀ) = Q f(C) Pᵀ then needs the small cores QᵀΔₜP alone (Core Space, https://arxiv.org/abs/2509.17786); one with
f(QC) = Q f(C) the bands QᵀΔₜ. The result is a low-rank change again: Q times what `core:NAME` gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from surgeon.space.kernels import Call, Kernel, Merging, register_kernels
from surgeon.space.registry import merge_method_named


class Span(Kernel):
    """Orthonormal columns Q [m, k] that span the columns of whole inputs, some of which are stored as rows."""

    blocks = "whole"

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        columns = [_turned(*pair) for pair in zip(call.wholes, call.settings["turned"], strict=True)]
        return _orthonormal(columns).to(stack.dtype)


class Core(Merging):
    """A merge method on cores; what it gives, times Q, is the merged change: [k, n].

    Whole inputs: Q, then the left and the right factor of every update; `members` says which model an update belongs
    to, `scales` what it is multiplied by, `turned` whether its factors are stored transposed.
    """

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        columns, *factors = call.wholes
        turned, scales, members = (call.settings[name] for name in ("turned", "scales", "members"))
        left = [columns.double().T @ _turned(*pair) for pair in zip(factors[::2], turned, strict=True)]
        right = [_turned(*pair) for pair in zip(factors[1::2], turned, strict=True)]
        across = _orthonormal([factor.T for factor in right]) if self.method.equivariant == "both" else None
        if across is not None:
            right = [factor @ across for factor in right]
        cores = left[0].new_zeros(len(call.settings["labels"]), len(left[0]), right[0].shape[1])
        for member, scale, one, other in zip(members, scales, left, right, strict=True):
            cores[member] += (one @ other) * scale
        merged = self.run({self.method.operand: cores}, call)
        return (merged if across is None else merged @ across.T).to(stack.dtype)


def _turned(factor: Tensor, turned: bool) -> Tensor:
    return factor.double().T if turned else factor.double()


def _orthonormal(columns: Sequence[Tensor]) -> Tensor:
    return torch.linalg.qr(torch.cat(list(columns), 1)).Q


register_kernels("span", lambda name: Span())
register_kernels("core", lambda name: Core(merge_method_named(name)))
