"""Whether a plan's result is the model that is loaded with other numbers, and what becomes of them there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from surgeon.errors import MismatchError
from surgeon.planning.plan import Plan
from surgeon.planning.step import Target
from surgeon.runtime.module_sink import ModuleSink
from surgeon.tensors import torch_dtype

_LOAD = "make a model of its own: surgeon.load(RECIPE), or surgeon.apply(RECIPE, OUT)"
_SHOWN = 12

#: What a loaded model can be given after it was built: a head of its own.
_IN_PLACE = {"tie_word_embeddings"}


@dataclass(frozen=True)
class Fitted:
    """A plan without what the model has no place for; what its numbers lose in the model's dtype, and other notes."""

    plan: Plan
    losses: tuple[str, ...]
    notes: tuple[str, ...]


def only_numbers(plan: Plan) -> bool:
    """Whether the result is the model of its side files with other numbers; else it is another model."""
    return not plan.config.keys() - _IN_PLACE


def fitted_to(plan: Plan, sink: ModuleSink) -> Fitted:
    """The plan as the sink's model takes it. MismatchError, with every fault, where that is another model."""
    if not only_numbers(plan):
        keys = ", ".join(sorted(plan.config.keys() - _IN_PLACE))
        raise MismatchError(f"the recipe changes what the model is built by: {keys} in config.json", hint=_LOAD)
    placed = tuple(target for target in plan.targets if target.name in sink.views.parameter)
    if faults := [*_misfits(sink), *_gaps(placed, sink), *_packed(placed, sink)]:
        more = f"\n    … and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        listed = "\n    ".join(faults[:_SHOWN])
        raise MismatchError(f"the recipe does not fit the loaded model:\n    {listed}{more}", hint=_LOAD)
    cast, lost = _casts(placed, sink)
    return Fitted(replace(plan, targets=placed), lost, (*cast, *_notes(plan, placed, sink)))


def _misfits(sink: ModuleSink) -> Iterator[str]:
    yield from (error.message for name, error in sink.views.refused.items() if name not in sink.views.parameter)


def _gaps(placed: tuple[Target, ...], sink: ModuleSink) -> Iterator[str]:
    """Parameters of the model that the recipe does not give."""
    filled = {sink.views.parameter[target.name] for target in placed}
    for name in sink.held.shelves:
        if name not in filled and not sink.held.is_tied(name):
            yield f"the recipe gives no {name}"


def _packed(placed: tuple[Target, ...], sink: ModuleSink) -> Iterator[str]:
    for target in placed:
        if target.spec.is_float and not sink.dtype(target.name).is_floating_point:
            yield f"{target.name} is {sink.dtype(target.name)} in the model: quantised as it was loaded"


def _casts(placed: tuple[Target, ...], sink: ModuleSink) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is said of tensors whose dtype in the model is not the one they are written in: kept exactly, or rounded."""
    pairs = Counter((torch_dtype(target.spec.dtype), sink.dtype(target.name)) for target in placed)
    exact, rounded = [], []
    for (written, own), count in pairs.items():
        about = f"{count} tensors are written as {_name(written)} and held as {_name(own)}"
        if torch.promote_types(written, own) != own:
            rounded.append(f"{about}: the model has their numbers rounded to {_name(own)}")
        elif written != own:
            exact.append(f"{about}: the model has the numbers of the file in its own dtype")
    return tuple(exact), tuple(rounded)


def _notes(plan: Plan, placed: tuple[Target, ...], sink: ModuleSink) -> Iterator[str]:
    names = {target.name for target in placed}
    unused = [target.name for target in plan.targets if target.name not in names]
    if unused:
        yield f"{len(unused)} tensors have no place in the loaded model, such as {unused[0]}"
    if plan.files:
        yield f"what changes in {', '.join(sorted(plan.files))} is not part of a loaded model"
    shadowed = [t.name for t in placed if t.action == "compute" and sink.views.parameter[t.name] in sink.held.shadowed]
    if shadowed:
        yield f"an adapter has its own copy of {', '.join(shadowed)}, which is used while the adapter is active"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
