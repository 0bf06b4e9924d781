"""The difference between a model and its base, tensor by tensor, as factors an adapter can carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from surgeon.engine.events import Listener, Progress
from surgeon.engine.values import Values
from surgeon.errors import MismatchError, RefusedError
from surgeon.planning.core_space import factored
from surgeon.planning.plan import Plan
from surgeon.planning.step import Target
from surgeon.runtime.names import module_names
from surgeon.ship.adapter import misfit, write_adapter
from surgeon.ship.factors import Factors, Limit, factorised, joined
from surgeon.space.select import matches
from surgeon.store.adapter_match import stored_transposed
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.files import Files


@dataclass(frozen=True)
class Extraction:
    """The plan of the model in float32, the base it stands on, how much of the difference is kept."""

    plan: Plan
    base: Checkpoint
    limit: Limit

    def changes(self, drop: Sequence[str], listener: Listener | None) -> tuple[dict[str, Factors], tuple[str, ...]]:
        """The factors of every tensor that differs, and the names of those left out. MismatchError lists misfits."""
        wanted = [target for target in self.plan.targets if self._differs(target)]
        dropped = tuple(target.name for target in wanted if any(matches(pattern, target.name) for pattern in drop))
        kept = [target for target in wanted if target.name not in dropped]
        found: dict[str, Factors] = {}
        faults: list[str] = []
        with closing(Files()) as files, torch.inference_mode():
            values = Values.of(self.plan, files)
            for done, target in enumerate(kept):
                if listener is not None:
                    listener(Progress("export", done, len(kept), "tensors", target.name))
                factors = self._factors(target, values, faults)
                if factors is not None and factors.norm:
                    found[target.name] = factors
        if faults:
            shown = "\n    ".join(faults[:20]) + (f"\n    … {len(faults) - 20} more" if len(faults) > 20 else "")
            hint = "--drop PATTERN leaves changes out (--drop '*norm*'), or ship the whole model"
            raise MismatchError(f"an adapter cannot hold {len(faults)} of the changes:\n    {shown}", hint=hint)
        if not found:
            raise RefusedError("the model is its base: there is nothing an adapter could hold")
        return found, dropped

    def write(self, folder: Path, changes: Mapping[str, Factors], dtype: torch.dtype) -> None:
        """The adapter's two files, its modules called as transformers calls them."""
        shapes = {name: stored.spec.shape for name, stored in self.base.tensors.items()}
        names = module_names(self.base.config, shapes)
        by_module = {names.get(name, name).removesuffix(".weight"): found for name, found in changes.items()}
        turned = any(self._turned(name) for name in changes)
        write_adapter(
            folder, by_module, base=self.base.ref, transposed=turned, dtype=dtype, revision=self.base.revision or ""
        )

    def _differs(self, target: Target) -> bool:
        stored = self.base.tensors.get(target.name)
        if stored is None:
            raise MismatchError(f"{target.name} is in the model and not in the base {self.base.ref}")
        step = self.plan.steps[target.key]
        return target.spec.is_float and step.stored != stored

    def _factors(self, target: Target, values: Values, faults: list[str]) -> Factors | None:
        stored, steps = self.base.tensors[target.name], self.plan.steps
        base = next((step.key for step in steps.below(target.key) if step.stored == stored), None)
        given = factored(steps, (target.key,), base)
        why = misfit(target.name, stored.spec)
        if given is not None and why is None:
            # Of what is stored transposed, [in, out], the left factor is Aᵀ and the right one Bᵀ.
            ends = [(one.right, one.left) if one.turned else (one.left, one.right) for one in given[0]]
            parts = [(one.scale, values.whole(b), values.whole(a)) for one, (b, a) in zip(given[0], ends, strict=True)]
            return joined(parts, self.limit) if parts else None
        change = values.whole(target.key) - values.whole_of(stored)
        if not change.any():
            return None
        if why is not None:
            faults.append(f"{target.name} {why}")
            return None
        if not self.limit.given:
            raise RefusedError(
                f"the change of {target.name} is not given in factors",
                hint="say how much to keep: --rank R or --error E",
            )
        return factorised(change.T if self._turned(target.name) else change, self.limit)

    def _turned(self, name: str) -> bool:
        return stored_transposed(name, {key: held.spec for key, held in self.base.tensors.items()})
