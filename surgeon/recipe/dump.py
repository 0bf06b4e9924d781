"""An expression → a native recipe that reads back equal."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from surgeon.errors import RefusedError
from surgeon.recipe.dump_parts import direction_data, edit_data, reshape_data, setting_data, settings_data
from surgeon.recipe.names import identifier, is_path, probed_reference, unique
from surgeon.recipe.yaml_write import write_yaml
from surgeon.space.coefficient import decimal
from surgeon.space.expr import Combination, DirectionRef, Edit, Expr, Merge, Model, Reshape, walk
from surgeon.space.output import Output, Recipe
from surgeon.space.schedule import Schedule
from surgeon.tensors import FLOATS

HEADER = "# yaml-language-server: $schema=recipe.schema.json\n"


def dump_recipe(recipe: Recipe | Expr, *, schema: bool = True) -> str:
    """A recipe, or an expression, as native YAML; loading it gives an equal one.

    Paths are written absolute, those of direction files as they are. RefusedError for a direction in memory.
    `schema` puts the line before it that tells editors of `recipe.schema.json` in the same folder.
    """
    recipe = Recipe(recipe) if isinstance(recipe, Expr) else recipe
    writer = _Writer()
    files_from = recipe.output.files_from
    roots = (recipe.expr,) if files_from is None else (files_from, recipe.expr)
    for expr in roots:
        writer.define(expr)
    if isinstance(recipe.expr, Model) or (files_from is not None and recipe.expr in walk(files_from)):
        writer.again(recipe.expr, "result")
    directions = {"directions": writer.directions} if writer.directions else {}
    data: dict[str, Any] = {"surgeon": 1, "models": writer.models, **directions, "steps": writer.steps}
    if output := _output(recipe.output, writer):
        data["output"] = output
    return (HEADER if schema else "") + write_yaml(data, levels=3)


class _Writer:
    """The models, directions and steps written so far, and what every expression is called."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.directions: dict[str, Any] = {}
        self.steps: dict[str, Any] = {}
        self.names: dict[Expr, str] = {}
        self._along: dict[DirectionRef, str] = {}
        self._taken: set[str] = {"union"}  # the word for all tokens in a step of reshape: vocab

    def define(self, root: Expr) -> None:
        """Write every part of an expression that is not written yet, parts before what is made of them."""
        for expr in walk(root):
            if expr not in self.names:
                self.names[expr] = self._model(expr) if isinstance(expr, Model) else self._step(expr)

    def again(self, expr: Expr, name: str) -> str:
        """A further step that is the same expression."""
        name = unique(name, self._taken)
        self.steps[name] = {"combine": self.names[expr]}
        return name

    def _model(self, model: Model) -> str:
        name = unique(identifier(model.name or Path(model.ref.partition("@")[0]).name), self._taken)
        ref, base = _reference(model), model.base_model
        self.models[name] = ref if base is None else {"model": ref, "base_model": self.names[base]}
        return name

    def _step(self, expr: Expr) -> str:
        """The place of a further kind of step."""
        if isinstance(expr, Merge):
            step, wanted = dict(self._merge(expr)), expr.name or "merged"
        elif isinstance(expr, Edit):
            step, wanted = dict(edit_data(expr, self.names[expr.of], self._directions(expr))), expr.name or "edited"
        elif isinstance(expr, Reshape):
            step, wanted = dict(reshape_data(expr, self.names)), expr.name or "reshaped"
        elif isinstance(expr, Combination):
            step, wanted = self._combination(expr), "combined"
        else:
            raise TypeError(f"{type(expr).__name__} has no form in a recipe")
        name = unique(identifier(wanted), self._taken)
        self.steps[name] = step
        return name

    def _directions(self, edit: Edit) -> list[str]:
        """What the directions of an edit are called; one that is met again in it goes by a second name."""
        found: list[str] = []
        for use in edit.directions:
            name = self._along.get(use)
            if name is None or name in found:
                source = Path(use.source).stem if isinstance(use.source, str) else "direction"
                name = self._along[use] = unique(identifier(use.name or source), self._taken)
                self.directions[name] = direction_data(use, self.names)
            found.append(name)
        return found

    def _merge(self, merge: Merge) -> Iterator[tuple[str, Any]]:
        yield "merge", merge.method
        if merge.base_model is not None:
            yield "base_model", self.names[merge.base_model]
        if merge.semantics != "paper":
            yield "semantics", merge.semantics
        members = dict(self._members(merge))
        yield "models", members if any(members.values()) else list(members)
        yield from settings_data(merge.settings, self.names).items()

    def _members(self, merge: Merge) -> Iterator[tuple[str, Any]]:
        """Names and settings; a point that is met again, or is the base, goes by a second name."""
        seen = {merge.base_model}
        for member in merge.members:
            name = self.names[member.of]
            if member.of in seen:
                name = self._model(member.of) if isinstance(member.of, Model) else self.again(member.of, name)
            seen.add(member.of)
            yield name, settings_data(member.settings, self.names)

    def _combination(self, expr: Combination) -> dict[str, Any]:
        schedules: dict[Schedule, str] = {}
        for schedule in (schedule for _, coefficient in expr.terms for schedule, _ in coefficient.scheduled):
            if schedule not in schedules:
                schedules[schedule] = unique(identifier(schedule.name or "s"), self._taken)
        text = ""
        for term, coefficient in expr.terms:
            name = self.names[term]
            parts = [(coefficient.constant, name)] if coefficient.constant else []
            parts += [(factor, f"{schedules[schedule]} * {name}") for schedule, factor in coefficient.scheduled]
            for number, product in parts:
                text += _signed(number, product, first=not text)
        declared = {name: setting_data(schedule) for schedule, name in schedules.items()}
        return {"combine": text or 0} | ({"schedules": declared} if declared else {})


def _signed(number: Fraction, name: str, *, first: bool) -> str:
    """One term of a sum, with its sign."""
    sign = "-" if number < 0 else "" if first else "+"
    sign = sign if first else f" {sign} "
    return sign + (name if abs(number) == 1 else f"{decimal(abs(number))} * {name}")


def _reference(model: Model) -> str:
    """The reference a native recipe needs: an absolute path, or a Hub id."""
    if model.probe or is_path(model.ref):
        try:
            return probed_reference(model.ref)
        except ValueError as error:
            raise RefusedError(str(error), origin=model.origin) from None
    return model.ref


def _output(output: Output, writer: _Writer) -> dict[str, Any]:
    written = {
        "dtype": output.dtype and FLOATS[output.dtype],
        "shard_size": output.shard_size,
        "files_from": output.files_from and writer.names[output.files_from],
        "rounding": None if output.rounding == "nearest" else output.rounding,
        "drop": list(output.drop) or None,
        "chat_template": output.chat_template,
        "dequantize": output.dequantize or None,
    }
    return {key: value for key, value in written.items() if value is not None}
