"""Arcee Fusion: of a model, only the changes that matter most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from surgeon.space.magnitude import KthMagnitude, magnitudes
from surgeon.space.method import merge_method
from surgeon.space.parameters import Base, Models
from surgeon.space.statistics import Place, Statistic

_QUARTILES = (0.25, 0.5, 0.75)
#: Added to every probability.
_FLOOR = 1e-8


@dataclass(frozen=True)
class Importance:
    """How far the rows of a block differ as distributions, [rows, 1] float32, and the least importance kept."""

    divergence: Tensor
    least: float


@dataclass(frozen=True)
class _State:
    """Divergences of the rows by where their tile starts, their precision, and the search for the quartiles."""

    search: Any
    dtype: torch.dtype
    divergence: Mapping[Place, Tensor] | None = None


@dataclass(frozen=True)
class Outliers(Statistic):
    """The threshold Q₂ + 1.5 (Q₃ − Q₁) of the importance of all entries, by selection.

    The first round knows each row's divergence, the others select among the products.
    """

    select: KthMagnitude = field(default_factory=KthMagnitude)

    @property
    @override
    def rounds(self) -> int:
        return self.select.rounds  # one round for divergences, and none for the place of the last tie

    @property
    @override
    def reads(self) -> int:
        return 3

    @override
    def scratch(self, models: int, count: int, block: int, tensors: int = 1) -> int:
        return 64 * block + 4 * count // 64 + self.select.scratch(3, count, block, tensors)

    @override
    def begin(self, models: int, count: int, settings: Mapping[str, Any]) -> _State:
        search = self.select.search([count - int(q * (count - 1)) for q in _QUARTILES], count)
        return _State(search, getattr(torch, settings["divergence_in"]))

    @override
    def observe(self, known: _State, values: Tensor, place: Place) -> Any:
        if known.divergence is None:
            return divergence(values[0], values[1], known.dtype)
        important = _important(values[0], values[1], known.divergence[place]).reshape(1, -1)
        return self.select.observe(known.search, important.expand(3, -1), place)

    @override
    def collect(self, known: _State, partials: dict[Any, Any], place: Place, partial: Any) -> None:
        if known.divergence is None:
            partials[place] = partial
        else:
            self.select.collect(known.search, partials, place, partial)

    @override
    def conclude(self, known: _State, partials: Mapping[Any, Any]) -> _State:
        if known.divergence is None:
            return replace(known, divergence=partials)
        return replace(known, search=self.select.conclude(known.search, partials))

    @override
    def wanted(self, known: _State, place: Place, count: int) -> int:
        found = known.divergence is not None and not self.select.wanted(known.search, place, count)
        return 0 if found else count

    @override
    def at(self, known: _State, place: Place) -> Importance:
        first, median, third = magnitudes(known.search)
        own = (known.divergence or {}).get(place)
        return Importance(torch.ones(1, 1) if own is None else own, median + 1.5 * (third - first))

    @override
    def of(self, values: Tensor, settings: Mapping[str, Any]) -> Importance:
        known = self.begin(len(values), values[0].numel(), settings)
        for _ in range(self.rounds if values.device.type != "meta" else 0):
            partials: dict[Any, Any] = {}
            if self.wanted(known, (0, 0), values[0].numel()):
                self.collect(known, partials, (0, 0), self.observe(known, values, (0, 0)))
            known = self.conclude(known, partials)
        return self.at(known, (0, 0))


def divergence(base: Tensor, model: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """KL(softmax(model) ‖ softmax(base)) of every row, [rows, 1] float32, computed in `dtype`; 1 for a vector.

    One factor for all entries changes nothing in what lies above a quantile.
    """
    if base.ndim < 2:
        return torch.ones(1, device=base.device)
    p, q = (torch.softmax(each.to(dtype), -1) + _FLOOR for each in (model, base))
    return (p * torch.log(p / q)).sum(-1, keepdim=True).clamp_min(0).float()


def _important(base: Tensor, model: Tensor, divergence: Tensor) -> Tensor:
    return (model - base).abs() * divergence.to(base.device)


_OUTLIERS: Any = Outliers()


@merge_method(
    blocks="rows",
    models=(1, 1),
    breaks={
        "one_model": "most of its changes are left out",
        "scaling": "importance rests on the softmax of the weights",
    },
    mergekit={
        "": (True, "quartiles of large tensors are guessed from a million random entries, here they are exact"),
        "divergence_in": (
            "float32",
            "divergences are summed in float32, whose noise decides near the threshold",
        ),
    },
)
def arcee_fusion(
    base: Base,
    models: Models,
    divergence_in: Literal["float64", "float32"] = "float64",
    importance: Importance = _OUTLIERS,
) -> Tensor:
    """Take from the model the entries whose change is of outstanding importance, the others from the base.

    Formula: θ = θ₀ + (θ₁ − θ₀) · [I ≥ Q₂ + 1.5 (Q₃ − Q₁)], I = |θ₁ − θ₀| · KL(softmax θ₁ ‖ softmax θ₀), softmax and KL
    row by row, Q₁ to Q₃ the quartiles of I over the whole tensor, all entries of it.

    `divergence_in: float32` sums divergences with the noise mergekit's have. The importance of a vector is |θ₁ − θ₀|.

    Use it to bring the outliers of one fine-tune's change into the base; a skill spread evenly over the weights is
    lost.

    Paper: none; the method is Arcee's.
    """
    change = models[0] - base
    kept = _important(base, models[0], importance.divergence) >= importance.least
    return base + change * kept
