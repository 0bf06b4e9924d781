"""What a merge of several models has to expect, said before it is made: numbers, and one sentence of advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.measuring.interference import Interference
from surgeon.measuring.path import STEPS, Kept

#: From here on models move together and are averaged; from here on others answer loudly to a model's inputs.
_PARALLEL, _LOUD = 0.4, 0.25
#: model_stock keeps less than this of what it merges where task vectors are nearly orthogonal.
_NOTHING_LEFT = 0.2


@dataclass(frozen=True)
class MergeReport:
    """Task vectors of `models` by layer (``before`` and ``after`` the stack too) and together; prompts if any."""

    models: tuple[str, ...]
    layers: Mapping[str, Interference]
    whole: Interference
    kept: Mapping[str, Kept]
    differences: tuple[str, ...]

    @property
    def stock(self) -> float:
        """The t that model_stock would take: T cos / (1 + (T − 1) cos), https://arxiv.org/abs/2403.19522."""
        count, cosine = len(self.models), max(self.whole.cosine, 0.0)
        return count * cosine / (1 + (count - 1) * cosine)

    @property
    def score(self) -> float:
        """Predicts the order of merges by their worst skill, higher is better.

        What the best step along the sum keeps of the worst expert where prompts tell; else the loudest interference.
        """
        if self.kept:
            return self._best()[1]
        return -max(self.whole.interference)

    def _best(self) -> tuple[float, float]:
        """The step along the sum at which the worst expert keeps most, and how much that is."""
        worst = [min(kept.shares[index] for kept in self.kept.values()) for index in range(len(STEPS))]
        best = max(range(len(STEPS)), key=lambda index: worst[index])
        return STEPS[best], worst[best]

    def advice(self) -> str:
        """What to expect, which method to try first, and why; a warning of methods that give the base back."""
        count, whole = len(self.models), self.whole
        loud = max(whole.interference)
        worst = self.models[whole.interference.index(loud)]
        if whole.cosine > _PARALLEL:
            first = (
                f"Expect an average to hold: the models move the same way (cosine {whole.cosine:.2f}). Try linear "
                "first."
            )
        elif count == 2 and loud < _LOUD:
            first = (
                f"Expect both to survive their sum: the other answers to {worst}'s inputs at {loud:.2f} of its own "
                "strength. Try task_arithmetic at weight 1 first."
            )
        else:
            lost = "some" if loud < _LOUD else "much"
            first = (
                f"Expect a plain sum to cost {worst} {lost}: the others answer to its inputs at {loud:.2f} of its own "
                "strength. Try tsv_m first (it makes their subspaces orthogonal); with some prompts a model, regmean, "
                "or surgeon tune, which keeps most."
            )
        if self.kept:
            step, share = self._best()
            first += f" On the prompts a plain sum is best at weight {step:g} and keeps {share:.0%} of the worst one."
        if self.stock < _NOTHING_LEFT:
            first += (
                f" model_stock would return almost the base (t = {self.stock:.2f}): these task vectors are orthogonal."
            )
        return first

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "models": list(self.models),
            "whole": _numbers(self.whole),
            "layers": {layer: _numbers(found) for layer, found in self.layers.items()},
            "path": {
                name: {"base": kept.base, "expert": kept.expert, "steps": list(STEPS), "shares": list(kept.shares)}
                for name, kept in self.kept.items()
            },
            "differences": list(self.differences),
            "model_stock": self.stock,
            "score": self.score,
            "advice": self.advice(),
        }

    def summary(self) -> str:
        """Tables for the terminal, the sentence last."""
        lines = [_row(("", "norm", "aligned", "interference"))]
        columns = zip(self.models, self.whole.norms, self.whole.aligned, self.whole.interference, strict=True)
        lines += [_row((name, *(f"{value:.3f}" for value in values))) for name, *values in columns]
        lines += ["", _row(("layer", "cosine", "conflict", "interference"))]
        for layer, found in (*self.layers.items(), ("all", self.whole)):
            lines.append(
                _row((layer, f"{found.cosine:.3f}", f"{found.conflict:.2f}", f"{max(found.interference):.3f}"))
            )
        if self.kept:
            lines += ["", _row(("kept of", *(f"α {step:g}" for step in STEPS)))]
            lines += [_row((name, *(f"{share:.2f}" for share in kept.shares))) for name, kept in self.kept.items()]
        lines += [f"  {difference}" for difference in self.differences]
        return "\n".join([*lines, "", self.advice()])


def _numbers(found: Interference) -> dict[str, Any]:
    return {
        "norms": list(found.norms), "cosine": found.cosine, "conflict": found.conflict, "aligned": list(found.aligned),
        "interference": list(found.interference),
    }  # fmt: skip


def _row(cells: Sequence[str]) -> str:
    return "  " + f"{cells[0]:<24}" + "".join(f"{cell:>14}" for cell in cells[1:])
