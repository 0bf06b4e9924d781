"""Writing edits and reshapes in Python. Nothing is read but directions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from surgeon.artifacts.direction import Direction
from surgeon.errors import Fault, RecipeError, nearest
from surgeon.space.api import setting_of
from surgeon.space.expr import DirectionRef, Edit, Expr, Fit, Part, Reshape, settings
from surgeon.space.parameters import Parameter
from surgeon.space.parts import BASE, PartNumber, TokenSources, base_of, token_sources
from surgeon.space.registry import edit_named, reshape_named

Operands = Expr | tuple[Expr, tuple[int, int] | str]
Directions = str | Path | Direction | Fit | DirectionRef


def edit(
    method: str,
    of: Expr,
    *,
    directions: Directions | Sequence[Directions] = (),
    at: str = "",
    layers: tuple[int, int] | None = None,
    writers: str | Sequence[str] = "all",
    tied: Literal["untie", "both", "skip"] = "untie",
    allow_partial: bool = False,
    name: str = "",
    **given: Any,
) -> Edit:
    """Edit what a model writes into its residual stream with a registered edit; several directions act as one subspace.

    `directions` are files or objects; `at` overrides the residual point they are used at (``block.14``, or ``own``:
    each block's own). `layers` limits the edit to blocks [first, end), `writers` to attention, mlp or embed.
    RecipeError lists every unknown setting and value out of range.
    """
    found = edit_named(method)
    faults: list[Fault] = []
    chosen = {}
    for argument, value in given.items():
        parameter = found.parameters.get(argument.rstrip("_"))
        if parameter is None:
            faults.append(Fault(f"{method} has no setting {argument!r}", hint=nearest(argument, found.parameters)))
        else:
            chosen[parameter.name] = setting_of(parameter, value, faults)
    if layers is not None and not _is_range(layers):
        faults.append(Fault(f"{layers!r} is no range of layers", hint="give a pair, (first, end), the end left out"))
    if not isinstance(of, Expr):
        faults.append(Fault(f"{of!r} is no model", hint=f"write surgeon.open({str(of)!r})"))
    if faults:
        raise RecipeError(faults)
    listed = [directions] if isinstance(directions, Directions) else list(directions)
    parts = (writers,) if isinstance(writers, str) else tuple(writers)
    uses = tuple(_use(one, at) for one in listed)
    kept = () if "all" in parts else parts
    return Edit(method, of, uses, settings(chosen), layers, kept, tied, allow_partial, name)


def reshape(method: str, *parts: Operands, name: str = "", **given: Any) -> Reshape:
    """Reshape a model, or several into one: ``untie`` gives a tied model a head of its own.

    A part is a model, or a pair of a model and what is taken of it: the blocks (first, end), or a pattern over tensor
    names. RecipeError lists what is wrong.
    """
    found = reshape_named(method)
    faults: list[Fault] = []
    chosen = {}
    taken = [_part(one, faults) for one in parts]
    models = [part.of for part in taken]
    numbers = {model: models.index(model) for model in models if isinstance(model, Expr)}
    base = base_of([models.index(model) for model in models]) if models else 0
    for argument, value in given.items():
        parameter = found.parameters.get(argument.rstrip("_"))
        if parameter is None:
            faults.append(Fault(f"{method} has no setting {argument!r}", hint=nearest(argument, found.parameters)))
        else:
            chosen[parameter.name] = part_setting(parameter, value, numbers, base, faults)
    if found.operands == ("of",) and len(taken) != 1:
        faults.append(Fault(f"{method} takes one model; {len(taken)} given"))
    elif not taken:
        faults.append(Fault(f"{method} takes models; none is given"))
    if faults:
        raise RecipeError(faults)
    return Reshape(method, tuple(taken), settings(chosen), name)


def _part(given: Operands, faults: list[Fault]) -> Part:
    of, which = given if isinstance(given, tuple) else (given, None)
    layers, targets = (None, which) if isinstance(which, str) else (which, None)
    if not isinstance(of, Expr):
        faults.append(Fault(f"{of!r} is no model", hint=f"write surgeon.open({str(of)!r})"))
    if layers is not None and not _is_range(layers):
        faults.append(Fault(f"{layers!r} is no range of layers", hint="give a pair, (first, end), the end left out"))
    return Part(of, layers, targets)


def part_setting(parameter: Parameter, value: Any, parts: Mapping[Expr, int], base: int, faults: list[Fault]) -> Any:
    """One setting of a reshape, in which models stand for their numbers among the parts."""

    def number(model: Any) -> int:
        if model not in parts:
            faults.append(Fault(f"{parameter.name}: {model} is none of the models given"))
        return parts.get(model, 0)

    if parameter.type is PartNumber and value not in parameter.choices:
        return PartNumber(base if value == BASE else number(value))
    return token_sources(value, number) if parameter.type is TokenSources else setting_of(parameter, value, faults)


def _is_range(layers: object) -> bool:
    return isinstance(layers, tuple) and len(layers) == 2 and all(type(one) is int for one in layers)


def _use(direction: Directions, at: str) -> DirectionRef:
    if isinstance(direction, DirectionRef):
        return direction
    if isinstance(direction, str | Path):
        direction = os.path.normpath(Path(direction).expanduser().absolute())
    return DirectionRef(direction, at)
