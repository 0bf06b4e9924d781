"""The difference between a model and its base, tensor by tensor, as factors an adapter can carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from surgeon.anatomy.describe import Anatomy, describe
from surgeon.anatomy.family import Role
from surgeon.engine.events import Listener, Progress
from surgeon.engine.values import Values
from surgeon.errors import MismatchError, RefusedError
from surgeon.planning.plan import Plan
from surgeon.planning.step import Target
from surgeon.runtime.names import module_names
from surgeon.ship.adapter import misfit, one_by_one, write_adapter
from surgeon.ship.factors import Factors, Limit, factorised, joined
from surgeon.ship.low_rank import Change, changes, matrices
from surgeon.space.select import matches
from surgeon.store.adapter_match import stored_transposed
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.files import Files
from surgeon.tensors import TensorSpec

#: Why an adapter cannot carry a change of a tensor; None where it can.
Carries = Callable[[str, TensorSpec], str | None]


@dataclass(frozen=True)
class Extraction:
    """The plan of the model in float32, the base it stands on, how much of the difference is kept."""

    plan: Plan
    base: Checkpoint
    limit: Limit

    def changes(
        self, drop: Sequence[str], listener: Listener | None, carries: Carries = misfit
    ) -> tuple[dict[str, tuple[Factors, ...]], tuple[str, ...]]:
        """The factors of every tensor that differs, one an expert, and the names of those left out.

        `carries` says of a tensor why the adapter cannot hold it; MismatchError lists all such.
        """
        dropped, faults = [], []
        found: dict[str, tuple[Factors, ...]] = {}
        with closing(Files()) as files, torch.inference_mode():
            values = Values.of(self.plan, files)
            for done, target in enumerate(self.plan.targets):
                if not self._differs(target):
                    continue
                if any(matches(pattern, target.name) for pattern in drop):
                    dropped.append(target.name)
                    continue
                if listener is not None:
                    listener(Progress("export", done, len(self.plan.targets), "tensors", target.name))
                factors = self._factors(target, values, faults, carries)
                if any(one.norm for one in factors):
                    found[target.name] = factors
        if faults:
            shown = "\n    ".join(faults[:20]) + (f"\n    … {len(faults) - 20} more" if len(faults) > 20 else "")
            hint = "--drop PATTERN leaves changes out (--drop '*norm*'), or ship the whole model"
            raise MismatchError(f"an adapter cannot hold {len(faults)} of the changes:\n    {shown}", hint=hint)
        if not found:
            raise RefusedError("the model is its base: there is nothing an adapter could hold")
        return found, tuple(dropped)

    def write(self, folder: Path, changes: Mapping[str, tuple[Factors, ...]], dtype: torch.dtype, experts: str) -> None:
        """The adapter's two files, its modules called as transformers calls them; `experts`: ``each`` or ``fused``."""
        shapes = {name: stored.spec.shape for name, stored in self.base.tensors.items()}
        names = module_names(self.base.config, shapes)
        by_module: dict[str, Factors] = {}
        stacks: dict[str, tuple[Factors, ...]] = {}
        for name, found in changes.items():
            if len(self.base.tensors[name].spec.shape) == 2:
                by_module[names.get(name, name).removesuffix(".weight")] = found[0]
            elif experts == "fused":
                stacks[names.get(name, name)] = found
            else:
                by_module |= one_by_one(name, found)
        turned = any(self._turned(name) for name in changes)
        write_adapter(
            folder, by_module, base=self.base.ref, transposed=turned, dtype=dtype, revision=self.base.revision or "",
            stacks=stacks,
        )  # fmt: skip

    def _differs(self, target: Target) -> bool:
        stored = self.base.tensors.get(target.name)
        if target.action == "copy" and stored is None and self.base.config.get("tie_word_embeddings", True):
            # A head that an edit has untied is the base's all the same: its embedding.
            return target.stored not in self.base.tensors.values()
        step = self.plan.steps[target.key]
        return target.spec.is_float and (stored is None or step.stored != stored)

    def _factors(self, target: Target, values: Values, faults: list[str], carries: Carries) -> tuple[Factors, ...]:
        """One pair a matrix; () where nothing changes or the tensor is no adapter's, which goes to `faults`."""
        stored, steps = self.base.tensors.get(target.name), self.plan.steps
        if stored is None:
            faults.append(f"{target.name} is not in the base {self.base.ref}")
            return ()
        base = next((step.key for step in steps.below(target.key) if step.stored == stored), None)
        why, turned = carries(target.name, stored.spec) or self._inputs_first(target.name), self._turned(target.name)
        given = changes(values, target.key, base) if why is None else None
        if given is not None:
            count = matrices(stored.spec.shape)[0] if given else 0
            return tuple(
                joined([_oriented(one, number, turned) for one in given], self.limit) for number in range(count)
            )
        change = values.whole(target.key) - values.whole_of(stored)
        if not change.any():
            return ()
        if why is not None:
            faults.append(f"{target.name} {why}")
            return ()
        if not self.limit.given:
            raise RefusedError(
                f"the change of {target.name} is not given in factors",
                hint="say how much to keep: --rank R or --error E",
            )
        change = change.reshape(-1, *change.shape[-2:])
        return tuple(factorised(one.T if turned else one, self.limit) for one in change)

    @cached_property
    def _anatomy(self) -> Anatomy:
        table = {name: held.spec for name, held in self.base.tensors.items()}
        return describe(self.base.config, table, self.base.ref)

    def _inputs_first(self, name: str) -> str | None:
        """Why the experts of one tensor cannot be told apart as [expert, out, in]; None for those that can."""
        if len(self.base.tensors[name].spec.shape) != 3:
            return None
        place = self._anatomy.places.get(name)
        outputs_first = place is not None and place.axis == (-2 if place.role is Role.WRITES_RESIDUAL else -1)
        return None if outputs_first else "holds its experts as [expert, in, out], which adapters here do not"

    def _turned(self, name: str) -> bool:
        return stored_transposed(name, {key: held.spec for key, held in self.base.tensors.items()})


def _oriented(change: Change, matrix: int, turned: bool) -> tuple[float, Tensor, Tensor]:
    """(c, B [out, k], A [k, in]) of one matrix of a change, which is stored [in, out] where it is turned."""
    left, right = change.left[matrix % len(change.left)], change.right[matrix % len(change.right)]
    return (change.scale, right.T, left.T) if turned else (change.scale, left, right)
