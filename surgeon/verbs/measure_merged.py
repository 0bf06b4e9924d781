"""Measuring all models of a merge together, block after block, while it is made (RegMean++)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.errors import RefusedError

if TYPE_CHECKING:
    from torch import Tensor

    from surgeon.calibration.merged import Party, Solve
    from surgeon.engine.events import Listener
    from surgeon.planning.measured import Measuring
    from surgeon.planning.nodes import Mix
    from surgeon.planning.plan import Plan
    from surgeon.runtime.load import Loaded
    from surgeon.space.expr import Expr, Merge


def measured_together(merge: Merge, files: Mapping[Measuring, Path], plan: Plan, listener: Listener | None) -> None:
    """Measure what every model of a merge, and its base as a guard, reads behind the merged blocks, into their files.

    RefusedError where some of them have a file already: these belong to the merge they were measured in.
    """
    from surgeon.calibration.merged import measure_merged
    from surgeon.engine.events import Progress
    from surgeon.planning.measured import measuring, uses
    from surgeon.verbs.measure_data import running

    wanted = [measuring(merge, use, plan.sources) for use in uses(merge) if use.value is not None]
    if None in wanted:
        hint = "give fit: merged_gram for every model, or the files of one earlier run for all"
        raise RefusedError(f"{merge}: its models are measured together", origin=merge.origin, hint=hint)
    assert merge.base_model is not None
    with running(merge.base_model, plan.options) as (loaded, base):
        # Members that are the same, measured on the same, are one party.
        parties = {one: _party(one, loaded, files[one], plan) for one in dict.fromkeys(wanted) if one is not None}

        def tell(done: int, total: int) -> None:
            if listener is not None:
                listener(Progress(f"measure {merge.name or merge.method}", done, total, "blocks"))

        order = {one: number for number, one in enumerate(parties)}
        chosen = [order[one] for one in wanted if one is not None]
        measure_merged(loaded, [*parties.values()], _solver(merge, [*parties.values()], chosen, base, plan), tell)


def _party(one: Measuring, loaded: Loaded, path: Path, plan: Plan) -> Party:
    from surgeon.calibration.merged import Party
    from surgeon.calibration.samples import samples
    from surgeon.engine.memory_sink import tensors_of
    from surgeon.verbs.measure_data import about_data, read_prompts, running

    planned = _planned(one.model, plan)
    examples = read_prompts(loaded, one.prompts)
    if all("text" in example or "response" in example for example in examples):
        encoded = samples(loaded, examples)
    else:
        with running(one.model, plan.options) as (own, _):
            encoded = samples(own, examples)
    return Party(encoded, lambda names: tensors_of(planned, names), path, about_data(planned, one.prompts, examples))


def _planned(expr: Expr, plan: Plan) -> Plan:
    from surgeon.planning.plan import build
    from surgeon.space.output import Output, Recipe

    return build(Recipe(expr, Output(dtype="F32", dequantize=True)), plan.options)


def _solver(merge: Merge, parties: Sequence[Party], chosen: Sequence[int], base: Plan, plan: Plan) -> Solve:
    """The merge of one tensor as the recipe will make it, from the Grams in hand.

    `chosen` is the number of each member's party, and last of the base's where it is a guard.
    """
    import torch

    from surgeon.engine.memory_sink import tensors_of
    from surgeon.planning.graph import Graph
    from surgeon.planning.nodes import Mix
    from surgeon.planning.resolve import Resolver

    node = Resolver(plan.sources)(merge)
    assert isinstance(node, Mix)
    graph, count = Graph(), len(merge.members)
    axes = _axes(node)

    def solve(name: str, grams: Sequence[Tensor | None]) -> Tensor:
        point = tensors_of(base, [name])[name]
        own = [party.tensors([name])[name] for party in parties]
        vectors = torch.stack([own[number] for number in chosen[:count]]) - point
        vectors = vectors.mT if axes.get(name) == -2 else vectors
        settings = {p.argument: node.settings_at(name, graph)[p.argument] for p in node.method.signature.parameters
                    if not p.per_tensor}  # fmt: skip
        held = [grams[number] for number in chosen]
        guard = held[count] if len(held) > count else None
        moved = node.method(vectors, gram=tuple(held[:count]), base_gram=guard, **settings)
        return point + (moved.mT if axes.get(name) == -2 else moved)

    return solve


def _axes(node: Mix) -> dict[str, int]:
    """The input axis of each matrix."""
    held = [one for artifacts in node.measured.values() for one in artifacts if one is not None]
    return {name: place.axis for one in held for name, place in one.places.items()}
