"""Join: tensors of several models in one, chosen by name: the vision tower of one, the language model of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from surgeon.errors import MismatchError, RefusedError
from surgeon.space.reshape import Drawn, Operand, Reshaping, Table
from surgeon.space.select import matches


class Join(Reshaping):
    """Takes from each part the tensors its `targets` fit; where several parts' fit, the last one's is taken.

    Every tensor is a byte copy. The config is the first part's.
    """

    name = "join"
    operands = ("parts",)

    @override
    def tensors(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Mapping[str, Drawn]:
        """Those of the first part, replaced by those of later ones."""
        drawn: dict[str, Drawn] = {}
        for number, part in enumerate(operands):
            if part.layers is not None:
                raise RefusedError("the parts of join have targets, not layers", hint="reshape: stack takes layers")
            chosen = {name: spec for name, spec in part.table.items() if matches(part.targets, name)}
            if not chosen:
                raise RefusedError(f"the pattern {part.targets!r} fits no tensor of {part.label}")
            replaced = {name for name in drawn if matches(part.targets, name)}
            _check(replaced, chosen, part, operands[0])
            drawn |= {name: Drawn(spec, ((number, name),)) for name, spec in chosen.items()}
        return drawn

    @override
    def notes(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Sequence[str]:
        """Tensors of the first part, whose config it is, that nothing takes."""
        first = operands[0]
        left = [name for name in first.table if not any(matches(part.targets, name) for part in operands)]
        if not left:
            return ()
        return (f"join leaves out {len(left)} tensors of {first.label} that no part's targets fit, such as {left[0]}",)

    @override
    def config(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Nothing: names and shapes stay those of the first part."""
        return {}


def _check(replaced: set[str], chosen: Table, part: Operand, first: Operand) -> None:
    """MismatchError where a part's tensors are not, by name and shape, those they replace."""
    if not replaced:
        return
    faults = [f"{name}: not in {part.label}" for name in replaced - chosen.keys()]
    faults += [f"{name}: not in {first.label}" for name in chosen.keys() - replaced]
    for name in replaced & chosen.keys():
        if first.table[name].shape != chosen[name].shape:
            faults.append(f"{name}: {first.table[name]} in {first.label}, {chosen[name]} in {part.label}")
    if faults:
        raise MismatchError("the parts do not fit together:\n    " + "\n    ".join(sorted(faults)[:20]))
