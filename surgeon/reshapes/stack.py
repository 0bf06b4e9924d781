"""Stack: layers of one model or several, one run on top of the other: deeper, shallower and mixed models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from typing_extensions import override

from surgeon.anatomy.depth import with_layers
from surgeon.space.parameters import Parameter
from surgeon.space.reshape import Drawn, Operand, Reshaping
from surgeon.space.runs import check_configs, check_shapes, differing, runs_of, taken


class Stack(Reshaping):
    """Puts runs of layers of one model or several on top of each other, numbered anew, and says so in the config.

    What stands behind the layers (final norm, head) is the last part's, all else that is in no layer the first part's.
    A layer may be taken several times. Every tensor is a byte copy. What the config says of each layer (its attention
    window, its rope, its experts) goes along with it. `prefix` chooses among the stacks of a model that has several.
    """

    name = "stack"
    operands = ("parts",)
    parameters: ClassVar[Mapping[str, Parameter]] = {"prefix": Parameter("prefix", "prefix", str, False, "")}

    @override
    def tensors(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Mapping[str, Drawn]:
        """Those before the layers, the layers under their new numbers, those behind them."""
        runs = runs_of(operands, settings.get("prefix", ""))
        check_shapes(runs)
        drawn = {name: Drawn(runs[0].part.table[name], ((0, name),)) for name in runs[0].around(after=False)}
        layers = ((part, run, number) for part, run in enumerate(runs) for number in run.layers)
        for new, (part, run, number) in enumerate(layers):
            for rest, name in run.held[number]:
                drawn[f"{run.stack.prefix}{new}.{rest}"] = Drawn(run.part.table[name], ((part, name),))
        behind = {
            name: Drawn(runs[-1].part.table[name], ((len(runs) - 1, name),)) for name in runs[-1].around(after=True)
        }
        return drawn | behind

    @override
    def config(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """How many layers there are, and what is said of each."""
        runs = runs_of(operands, settings.get("prefix", ""))
        first = runs[0].depth
        if not first.counts:
            return {}
        check_configs(runs)
        layers = sum(len(run.layers) for run in runs)
        changes = dict.fromkeys(first.counts, layers) | with_layers(first.section, taken(runs), layers)
        return {first.key: {**first.section, **changes}} if first.key else changes

    @override
    def notes(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Sequence[str]:
        """Where the parts' configs differ in what a layer may be computed by."""
        first, *others = runs_of(operands, settings.get("prefix", ""))
        found = []
        for run in others:
            told = [f"{key} ({one!r}, {other!r})" for key, (one, other) in differing(first, run).items()]
            if told:
                shown = ", ".join(told[:6]) + (" …" if len(told) > 6 else "")
                found.append(
                    f"the configs of {first.part.label} and {run.part.label} differ in {shown}; the former holds"
                )
        return tuple(dict.fromkeys(found))
