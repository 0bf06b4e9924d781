"""`surgeon export`: a result in another form than a whole checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surgeon.errors import RefusedError
from surgeon.space.api import given
from surgeon.space.expr import Combination, Edit, Expr, Merge, Model, Reshape, children
from surgeon.space.output import Output, Recipe
from surgeon.tensors import stored_dtype, torch_dtype

if TYPE_CHECKING:
    from surgeon.engine.events import Listener
    from surgeon.ship.extract import Extraction
    from surgeon.ship.factors import Factors, Limit


@dataclass(frozen=True)
class AdapterReport:
    """What an exported adapter holds: rank and error of every tensor, what was left out."""

    folder: Path
    tensors: Mapping[str, tuple[int, float]]
    dropped: Sequence[str]
    error: float

    @property
    def max_lora_rank(self) -> int | None:
        """The smallest --max-lora-rank with which vLLM serves it; None where it takes none so large."""
        from surgeon.ship.adapter import served_rank

        return served_rank(max((rank for rank, _ in self.tensors.values()), default=1))

    def facts(self) -> dict[str, Any]:
        """What its receipt says of it."""
        tensors = {name: {"rank": rank, "error": error} for name, (rank, error) in self.tensors.items()}
        about = {"error": self.error, "max_lora_rank": self.max_lora_rank}
        return {**about, "tensors": tensors, "dropped": list(self.dropped)}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"folder": str(self.folder), **self.facts()}

    def summary(self) -> str:
        """A line a tensor, then the whole."""
        width = max(map(len, self.tensors), default=0)
        lines = [
            f"  {name:<{width}}  rank {rank:>4}  error {error:.1e}" for name, (rank, error) in self.tensors.items()
        ]
        if self.dropped:
            lines.append(f"  left out: {', '.join(self.dropped)}")
        served = self.max_lora_rank
        how = f"vLLM serves it with --max-lora-rank {served}" if served else "vLLM serves no rank so large: cut it"
        whole = f"{len(self.tensors)} tensors, ‖D − BA‖/‖D‖ = {self.error:.1e} over all of them"
        return "\n".join([*lines, f"wrote {self.folder}: {whole}; {how}"])


def export_adapter(
    what: Expr | Recipe | str | Path,
    out: str | Path,
    *,
    base: Model | str | Path | None = None,
    rank: int | None = None,
    error: float | None = None,
    drop: Sequence[str] = (),
    experts: Literal["each", "fused"] = "each",
    dtype: str = "float32",
    device: str = "auto",
    overrides: Mapping[str, str] | None = None,
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> AdapterReport:
    """Write the difference between a model and its base as a PEFT LoRA adapter.

    `what` is a recipe, an expression or a checkpoint; a recipe's base is what it is built on unless `base` says
    otherwise. Edits along directions and arithmetic of adapters stay in factors: joined exactly, or cut through their
    QR. Anything else is decomposed, and needs a `rank` or an `error` (the largest ‖D − BA‖/‖D‖ of a tensor). Changes
    that an adapter cannot carry (norms, embeddings, routers, biases) are refused unless `drop` (patterns) leaves them
    out. `experts` that the base stores in one tensor are written one by one, as vLLM looks for them, or ``fused``, as
    PEFT does. The receipt, surgeon.json, names the base's hash and the error of every tensor.
    """
    from surgeon.engine.workspace import Workspace
    from surgeon.ship.base_hash import EXPORTED, export_receipt
    from surgeon.ship.factors import limit
    from surgeon.store.writer import settle

    try:
        stored = torch_dtype(stored_dtype(dtype))
    except ValueError as fault:
        raise RefusedError(str(fault)) from None
    found = extraction(what, base, limit(rank, error), device, overrides or {})
    folder = Path(out).expanduser()
    inputs = [source.root for source in found.plan.sources.values()]
    with Workspace(folder, "export adapter", overwrite=overwrite, resume=False, inputs=inputs) as build:
        try:
            changes, dropped = found.changes(drop, on_event)
            changes = {name: tuple(one.cast(stored) for one in each) for name, each in changes.items()}
            found.write(build.folder, changes, stored, experts)
            report = _report(folder, changes, dropped)
            receipt = export_receipt("adapter", found.base, on_event, report.facts())
            (build.folder / EXPORTED).write_bytes(receipt)
            settle(build.folder)
        except BaseException:
            build.discard()
            raise
        build.commit()
    return report


def _report(folder: Path, changes: Mapping[str, tuple[Factors, ...]], dropped: Sequence[str]) -> AdapterReport:
    every = {name: (max(one.rank for one in found), error_of(found)) for name, found in changes.items()}
    whole = error_of([one for found in changes.values() for one in found])
    return AdapterReport(folder, every, dropped, whole)


def error_of(found: Sequence[Factors]) -> float:
    """‖D − BA‖/‖D‖ over several."""
    square = sum(one.norm**2 for one in found)
    return (sum((one.error * one.norm) ** 2 for one in found) / square) ** 0.5 if square else 0.0


def extraction(
    what: Expr | Recipe | str | Path, base: Model | str | Path | None, kept: Limit, device: str,
    overrides: Mapping[str, str],
) -> Extraction:  # fmt: skip
    """A model against the base it stands on; RefusedError where what that is cannot be told."""
    from surgeon.planning.sources import open_sources
    from surgeon.ship.extract import Extraction
    from surgeon.store.checkpoint import Checkpoint
    from surgeon.verbs.plan import plan

    expr = _expression(what, overrides)
    model = base if isinstance(base, Model) else given(base) if base is not None else None
    model = model or base_of(expr, open_sources(expr))
    if model is None:
        raise RefusedError("what the adapter is to stand on is not known", hint="name the base: --base MODEL")
    sources = open_sources(model, expr)
    source = sources[model]
    if not isinstance(source, Checkpoint):
        raise RefusedError(f"{model} is an adapter, and no base to stand on", origin=model.origin)
    if source.quantised is not None:
        raise RefusedError(
            f"{model} is quantised ({source.quantised.format}), and differences from it are not exported",
            origin=model.origin,
            hint="export from the model in full: `surgeon apply` a recipe of it with --dequantize first",
        )
    difference = expr if _is_difference(expr, sources) else expr - model
    planned = plan(Recipe(model + difference, Output(dtype="F32")), device=device)
    if planned.fits:
        raise RefusedError("the recipe measures while it runs", hint="apply it first, and export OUT with --base")
    return Extraction(planned, source, kept)


def _is_difference(expr: Expr, sources: Mapping[Model, Any]) -> bool:
    from surgeon.planning.sources import is_adapter

    terms = [term for term, _ in expr.terms] if isinstance(expr, Combination) else [expr]
    return all(isinstance(term, Model) and is_adapter(sources[term]) for term in terms)


def _expression(what: Expr | Recipe | str | Path, overrides: Mapping[str, str]) -> Expr:
    if isinstance(what, Expr):
        return what
    if isinstance(what, Recipe):
        return what.expr
    if str(what).endswith((".yaml", ".yml")):
        from surgeon.recipe import load

        return load(Path(what), overrides).recipe.expr
    return given(what)


def base_of(expr: Expr, sources: Mapping[Model, Any]) -> Model | None:
    """The checkpoint that a result is built on; None for a checkpoint itself."""
    from surgeon.store.checkpoint import Checkpoint

    parts: Sequence[Expr | None] = ()
    if isinstance(expr, Combination):
        parts = [term for term, _ in expr.terms]
    elif isinstance(expr, Merge):
        parts = [expr.base_model]
    elif isinstance(expr, Edit | Reshape):
        parts = children(expr)[:1]
    for part in parts:
        if isinstance(part, Model) and isinstance(sources[part], Checkpoint):
            return part
        if part is not None and (found := base_of(part, sources)) is not None:
            return found
    return None
