"""`surgeon export`: a result in another form than a whole checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import RefusedError
from surgeon.space.api import open as open_model
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

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        tensors = {name: {"rank": rank, "error": error} for name, (rank, error) in self.tensors.items()}
        return {"folder": str(self.folder), "error": self.error, "tensors": tensors, "dropped": list(self.dropped)}

    def summary(self) -> str:
        """A line a tensor, then the whole."""
        width = max(map(len, self.tensors), default=0)
        lines = [
            f"  {name:<{width}}  rank {rank:>4}  error {error:.1e}" for name, (rank, error) in self.tensors.items()
        ]
        if self.dropped:
            lines.append(f"  left out: {', '.join(self.dropped)}")
        return "\n".join(
            [
                *lines,
                f"wrote {self.folder}: {len(self.tensors)} tensors, ‖D − BA‖/‖D‖ = {self.error:.1e} over all of them",
            ]
        )


def export_adapter(
    what: Expr | Recipe | str | Path,
    out: str | Path,
    *,
    base: Model | str | Path | None = None,
    rank: int | None = None,
    error: float | None = None,
    drop: Sequence[str] = (),
    dtype: str = "float32",
    device: str = "auto",
    overrides: Mapping[str, str] | None = None,
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> AdapterReport:
    """Write the difference between a model and its base as a PEFT LoRA adapter.

    `what` is a recipe, an expression or a checkpoint; a recipe's base is what it is built on unless `base` says
    otherwise. Arithmetic of adapters alone stays in factors: joined exactly, or cut through their QR. Anything else is
    decomposed, and needs a `rank` or an `error` (the largest ‖D − BA‖/‖D‖ of a tensor). Changes that an adapter cannot
    carry (norms, embeddings, biases) are refused unless `drop` (patterns) leaves them out.
    """
    from surgeon.engine.workspace import Workspace
    from surgeon.ship.factors import Limit

    if rank is not None and rank < 1:
        raise RefusedError(f"a rank of {rank} holds nothing", hint="give 1 or more")
    if error is not None and not 0 <= error < 1:
        raise RefusedError(f"an error of {error:g} is no share", hint="give one from 0 to below 1, such as 0.05")
    try:
        stored = torch_dtype(stored_dtype(dtype))
    except ValueError as fault:
        raise RefusedError(str(fault)) from None
    found = _extraction(what, base, Limit(rank, error), device, overrides or {})
    folder = Path(out).expanduser()
    inputs = [source.root for source in found.plan.sources.values()]
    with Workspace(folder, "export adapter", overwrite=overwrite, resume=False, inputs=inputs) as build:
        try:
            changes, dropped = found.changes(drop, on_event)
            found.write(build.folder, changes, stored)
        except BaseException:
            build.discard()
            raise
        build.commit()
    return _report(folder, changes, dropped)


def _report(folder: Path, changes: Mapping[str, Factors], dropped: Sequence[str]) -> AdapterReport:
    square = sum(found.norm**2 for found in changes.values())
    tail = sum((found.error * found.norm) ** 2 for found in changes.values())
    tensors = {name: (found.rank, found.error) for name, found in changes.items()}
    return AdapterReport(folder, tensors, dropped, (tail / square) ** 0.5)


def _extraction(
    what: Expr | Recipe | str | Path, base: Model | str | Path | None, limit: Limit, device: str,
    overrides: Mapping[str, str],
) -> Extraction:  # fmt: skip
    from surgeon.planning.sources import open_sources
    from surgeon.ship.extract import Extraction
    from surgeon.store.checkpoint import Checkpoint
    from surgeon.verbs.plan import plan

    expr = _expression(what, overrides)
    model = base if isinstance(base, Model) else open_model(base) if base is not None else None
    model = model or _base_of(expr, open_sources(expr))
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
    return Extraction(planned, source, limit)


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
    return open_model(what)


def _base_of(expr: Expr, sources: Mapping[Model, Any]) -> Model | None:
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
        if part is not None and (found := _base_of(part, sources)) is not None:
            return found
    return None
