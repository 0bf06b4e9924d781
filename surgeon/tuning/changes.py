"""What each expert changes of the base: factors of adapters where all are low rank, else differences of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.engine.reading import DiskReader, Files
from surgeon.errors import BudgetError
from surgeon.measuring.trial import changes_only
from surgeon.planning.options import free_memory
from surgeon.planning.plan import build
from surgeon.planning.resolve import Resolver
from surgeon.runtime.load import Loaded
from surgeon.space.expr import Model
from surgeon.space.output import Output, Recipe
from surgeon.store.adapter import Adapter, LowRank
from surgeon.store.header import Stored
from surgeon.tensors import TensorSpec, human_bytes
from surgeon.tuning.arithmetic import Arithmetic, Expert
from surgeon.tuning.mixture import Factors

#: Of the memory that is free, how much the differences may take; activations and the program itself need the rest.
_SHARE = 0.75


@dataclass(frozen=True, eq=False)
class Inventory:
    """The float tensors that experts change, by name: all of them, and each expert's low-rank updates.

    A tensor is in `factored` where it is low rank in every expert that changes it; else in `dense`.
    """

    specs: Mapping[str, TensorSpec]
    updates: Sequence[Mapping[str, LowRank]]
    factored: tuple[str, ...]
    dense: tuple[str, ...]


def inventory(found: Arithmetic, loaded: Loaded, layers: Mapping[str, object]) -> Inventory:
    """What the experts change, from headers alone; `layers` are the tensors that are the weight of a linear layer."""
    table = Resolver(found.sources)(found.base).table
    updates = [_low_rank(expert, found, table, layers) for expert in found.experts]
    changed = [_changed(expert, loaded) for expert in found.experts]
    names = [name for name in table if table[name].is_float and any(name in one for one in changed)]
    pairs = list(zip(changed, updates, strict=True))
    factored = tuple(name for name in names if all(name in own for one, own in pairs if name in one))
    dense = tuple(name for name in names if name not in set(factored))
    return Inventory({name: table[name] for name in names}, updates, factored, dense)


def _changed(expert: Expert, loaded: Loaded) -> set[str]:
    plan = changes_only(build(Recipe(expert.point, Output(dtype="F32", dequantize=True))), loaded)
    return {target.name for target in plan.targets}


def _low_rank(
    expert: Expert, found: Arithmetic, table: Mapping[str, TensorSpec], layers: Mapping[str, object]
) -> dict[str, LowRank]:
    source = found.sources.get(expert.of) if isinstance(expert.of, Model) else None
    given = source.on(table, str(found.base)) if isinstance(source, Adapter) else {}
    single = {name: one[0] for name, one in given.items() if len(one) == 1 and name in layers}
    low = {name: update for name, update in single.items() if isinstance(update, LowRank)}
    return {name: update for name, update in low.items() if not update.magnitude and not update.embedding}


def factors(held: Inventory, device: torch.device) -> dict[str, list[Factors | None]]:
    """The factors of the low-rank tensors, float32 on a device; the scale is in B."""
    with closing(Files()) as files:
        reader = DiskReader(files, device)

        def read(stored: Stored) -> Tensor:
            reader.begin()
            whole = torch.empty(stored.spec.count, device=device)
            reader.read(stored, 0, stored.spec.count, whole)
            return whole.reshape(stored.spec.shape)

        def made(update: LowRank | None) -> Factors | None:
            return None if update is None else Factors(read(update.a), read(update.b) * update.scale)

        return {name: [made(one.get(name)) for one in held.updates] for name in held.factored}


def check_memory(held: Inventory, experts: int) -> None:
    """Refuse what does not fit: every dense tensor, its gradient, and its difference for each expert."""
    need = sum(4 * held.specs[name].count * (experts + 2) for name in held.dense)
    if need > _SHARE * free_memory():
        raise BudgetError(
            f"the differences of {experts} experts in {len(held.dense)} tensors take {human_bytes(need)} of memory, "
            f"and {human_bytes(free_memory())} are free",
            hint="tune adapters instead of whole models (they stay low rank), or fewer experts at once",
        )
