"""`surgeon plan`: what a recipe would do, from headers alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.errors import Fault, MismatchError, RecipeError, RefusedError, SurgeonError
from surgeon.planning.options import Options
from surgeon.space.expr import Expr
from surgeon.space.output import Output, Recipe
from surgeon.tensors import parse_bytes, stored_dtype

if TYPE_CHECKING:
    from surgeon.planning.measured import Measuring
    from surgeon.planning.plan import Plan
    from surgeon.space.expr import Fit


def plan(
    what: Expr | Recipe | str | Path,
    *,
    dtype: str | None = None,
    shard_size: int | str | None = None,
    files_from: Expr | None = None,
    dequantize: bool = False,
    device: str = "auto",
    memory: int | str | None = None,
    threads: int | None = None,
    block: int | str = 1 << 21,
    allow_nan: bool = False,
    any_model: bool = False,
    overrides: Mapping[str, str] | None = None,
) -> Plan:
    """Plan a recipe (a file, a `Recipe` or an expression): every tensor, bytes, peak memory. No tensor is read.

    `dtype`, `shard_size`, `files_from` and `dequantize` win over the recipe's output; `memory` is a promise in bytes
    (or '4GB'); `block` is the size of the pieces tensors are computed in, which never changes the bytes written.
    `any_model` lets a direction be used on another model than it was measured on. Raises RefusedError for whatever
    would stop `apply` before it reads.
    """
    from surgeon.planning.plan import build

    recipe, notes = _recipe(what, overrides or {})
    try:
        asked = {
            "dtype": None if dtype is None else stored_dtype(dtype),
            "shard_size": None if shard_size is None else parse_bytes(str(shard_size)),
            "files_from": files_from,
            "dequantize": dequantize or None,
        }
        budget = None if memory is None else parse_bytes(str(memory))
        options = Options(device, budget, threads, parse_bytes(str(block)), allow_nan, any_model)
    except ValueError as error:
        raise RefusedError(str(error)) from None
    _check_workers(device, threads)
    output = replace(recipe.output, **{name: value for name, value in asked.items() if value is not None})
    planned = build(replace(recipe, output=output), options)
    if output.dequantize and not any(getattr(source, "quantised", None) for source in planned.sources.values()):
        hint = "leave it out"
        raise RefusedError("dequantize: no model of the recipe is quantised", origin=output.origin, hint=hint)
    _check_fits(planned)
    return replace(planned, warnings=(*notes, *planned.warnings))


def _recipe(what: Expr | Recipe | str | Path, overrides: Mapping[str, str]) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe in what was given, and notes on how it was read."""
    if isinstance(what, Expr | Recipe):
        return (Recipe(what) if isinstance(what, Expr) else what), ()
    from surgeon.recipe import load

    loaded = load(Path(what), overrides)
    return loaded.recipe, loaded.notes


def _check_fits(planned: Plan) -> None:
    """Refuse what a fit would stumble over once the models before it are made: its sets, what it is measured on."""
    from surgeon.planning.plan import build
    from surgeon.runtime.load import has_tokenizer

    faults = [fault for fit in planned.fits for fault in _faults(fit)]
    if faults:
        raise RecipeError(dict.fromkeys(faults))
    for fit in {fit.model: fit for fit in planned.fits}.values():
        try:
            stage = build(Recipe(fit.model, Output(dtype="F32", dequantize=True)), planned.options)
            if not has_tokenizer(stage.files_from.root):
                message = f"{fit.model} has no tokenizer, and what is measured is measured on text"
                raise MismatchError(message, hint=f"put its tokenizer.json into {stage.files_from.root}")
        except SurgeonError as error:
            error.origin = error.origin or fit.origin
            raise


def _faults(fit: Fit | Measuring) -> Iterator[Fault]:
    from surgeon.directions.examples import read_examples
    from surgeon.planning.measured import Measuring

    if not isinstance(fit, Measuring):
        yield from _fit_faults(fit)
    elif fit.prompts:
        try:
            read_examples(Path(fit.prompts).expanduser(), mixed=True)
        except SurgeonError as error:
            yield Fault(error.message, error.origin or fit.origin, error.hint)


def _fit_faults(fit: Fit) -> Iterator[Fault]:
    from surgeon.directions.contrast import Contrast
    from surgeon.directions.examples import read_examples
    from surgeon.directions.positions import Position
    from surgeon.space.fitter import SETS
    from surgeon.space.registry import fitter_named

    found = []
    for name, file in (("positive", fit.positive), ("negative", fit.negative), *fit.settings):
        try:
            if name in SETS and (file or name != "neutral"):
                found.append(read_examples(Path(str(file)).expanduser(), mixed=name == "neutral"))
        except SurgeonError as error:
            found.append(None)
            yield Fault(error.message, error.origin or fit.origin, error.hint)
    try:
        fitter_named(fit.fitter)
        Position.read(str(dict(fit.settings).get("position", "last")))
        if found[0] and found[1]:
            Contrast(found[0], found[1])
    except SurgeonError as error:
        yield Fault(error.message, error.origin or fit.origin, error.hint)


def _check_workers(device: str, threads: int | None) -> None:
    if device != "auto":
        from surgeon.engine.devices import choose

        choose(device)
    if threads is not None and threads < 1:
        raise RefusedError(f"{threads} threads cannot work", hint="give 1 or more")
