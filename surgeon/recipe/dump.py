"""An expression → a native recipe that reads back equal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from surgeon.errors import RefusedError
from surgeon.recipe.names import identifier, is_path, probed_reference, unique
from surgeon.recipe.yaml_write import write_yaml
from surgeon.space.coefficient import Coefficient, decimal
from surgeon.space.expr import Combination, Expr, Member, Merge, Model, Settings, walk
from surgeon.space.output import Output, Recipe
from surgeon.space.schedule import Layers, Rule, Rules, Schedule, Setting
from surgeon.tensors import FLOATS

HEADER = "# yaml-language-server: $schema=recipe.schema.json\n"


def dump_recipe(recipe: Recipe | Expr, *, schema: bool = True) -> str:
    """A recipe, or an expression, as native YAML; loading it gives an equal one. Paths are written absolute.

    `schema` puts the line before it that tells editors of `recipe.schema.json` in the same folder.
    """
    recipe = Recipe(recipe) if isinstance(recipe, Expr) else recipe
    writer = _Writer()
    files_from = recipe.output.files_from
    roots = (recipe.expr,) if files_from is None else (files_from, recipe.expr)
    for expr in roots:
        writer.define(expr)
    if isinstance(recipe.expr, Model) or (files_from is not None and recipe.expr in walk(files_from)):
        writer.alias_step(recipe.expr, "result")
    data: dict[str, Any] = {"surgeon": 1, "models": writer.models, "steps": writer.steps}
    if output := dict(_output(recipe.output, writer)):
        data["output"] = output
    return (HEADER if schema else "") + write_yaml(data, levels=3)


class _Writer:
    """The models and steps written so far, and what every expression is called."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.steps: dict[str, Any] = {}
        self.names: dict[Expr, str] = {}
        self._taken: set[str] = set()

    def define(self, root: Expr) -> None:
        """Write every part of an expression that is not written yet, parts before what is made of them."""
        for expr in walk(root):
            if expr not in self.names:
                self.names[expr] = self._model(expr) if isinstance(expr, Model) else self._step(expr)

    def alias_step(self, expr: Expr, name: str) -> None:
        """A further step that is the same expression."""
        self.steps[unique(name, self._taken)] = {"combine": self.names[expr]}

    def _model(self, model: Model) -> str:
        name = unique(identifier(model.name or Path(model.ref.partition("@")[0]).name), self._taken)
        ref = _reference(model)
        base = model.base_model
        self.models[name] = ref if base is None else {"model": ref, "base_model": self.names[base]}
        return name

    def _step(self, expr: Expr) -> str:
        if isinstance(expr, Merge):
            step = dict(self._merge(expr))
            name = unique(identifier(expr.name or "merged"), self._taken)
        elif isinstance(expr, Combination):
            name = unique("combined", self._taken)
            step = self._combination(expr)
        else:
            raise TypeError(f"{type(expr).__name__} has no form in a recipe")
        self.steps[name] = step
        return name

    # -- merges ---------------------------------------------------------------------------------------------------

    def _merge(self, merge: Merge) -> Iterator[tuple[str, Any]]:
        yield "merge", merge.method
        base = merge.base_model
        if base is not None:
            yield "base_model", self.names[base]
        if merge.semantics != "paper":
            yield "semantics", merge.semantics
        members = dict(self._members(merge.members, base))
        yield "models", members if any(members.values()) else list(members)
        yield from _settings(merge.settings).items()

    def _members(self, members: Iterable[Member], base: Expr | None) -> Iterator[tuple[str, Any]]:
        """Names and settings; a point that is met again, or is the base, goes by a second name."""
        seen = set() if base is None else {base}
        for member in members:
            name = self.names[member.of]
            if member.of in seen:
                name = self._again(member.of)
            seen.add(member.of)
            yield name, _settings(member.settings)

    def _again(self, expr: Expr) -> str:
        if isinstance(expr, Model):
            return self._model(expr)
        name = unique(self.names[expr], self._taken)
        self.steps[name] = {"combine": self.names[expr]}
        return name

    # -- combinations ---------------------------------------------------------------------------------------------

    def _combination(self, expr: Combination) -> dict[str, Any]:
        schedules: dict[Schedule, str] = {}
        for _, coefficient in expr.terms:
            for schedule, _ in coefficient.scheduled:
                if schedule not in schedules:
                    schedules[schedule] = unique(identifier(schedule.name or "s"), self._taken)
        text = ""
        for term, coefficient in expr.terms:
            text += _term(self.names[term], coefficient, schedules, first=not text)
        step: dict[str, Any] = {"combine": text or 0}
        if schedules:
            step["schedules"] = {name: _setting(schedule) for schedule, name in schedules.items()}
        return step


def _term(name: str, coefficient: Coefficient, schedules: dict[Schedule, str], *, first: bool) -> str:
    if not coefficient.scheduled:
        return _signed(coefficient.constant, name, first=first)
    if not coefficient.constant and len(coefficient.scheduled) == 1:
        schedule, factor = coefficient.scheduled[0]
        return _signed(factor, f"{schedules[schedule]} * {name}", first=first)
    inner = decimal(coefficient.constant) if coefficient.constant else ""
    for schedule, factor in coefficient.scheduled:
        inner += _signed(factor, schedules[schedule], first=not inner)
    return f"({inner}) * {name}" if first else f" + ({inner}) * {name}"


def _signed(number: Fraction, name: str, *, first: bool) -> str:
    """One term of a sum, with its sign."""
    sign = "-" if number < 0 else "" if first else "+"
    sign = sign if first else f" {sign} "
    return sign + (name if abs(number) == 1 else f"{decimal(abs(number))} * {name}")


def _settings(settings: Settings) -> dict[str, Any]:
    return {name: _setting(value) for name, value in settings}


def _setting(setting: Setting) -> Any:
    if isinstance(setting, Layers):
        return list(setting.values)
    return [_rule(rule) for rule in setting.rules] if isinstance(setting, Rules) else setting


def _rule(rule: Rule) -> dict[str, Any]:
    targets = {} if rule.targets is None else {"targets": rule.targets}
    return targets | {"value": _setting(rule.value)}


def _reference(model: Model) -> str:
    """The reference a native recipe needs: an absolute path, or a Hub id."""
    if model.probe or is_path(model.ref):
        try:
            return probed_reference(model.ref)
        except ValueError as error:
            raise RefusedError(str(error), origin=model.origin) from None
    return model.ref


def _output(output: Output, writer: _Writer) -> Iterator[tuple[str, Any]]:
    if output.dtype is not None:
        yield "dtype", FLOATS[output.dtype]
    if output.shard_size is not None:
        yield "shard_size", output.shard_size
    if output.files_from is not None:
        yield "files_from", writer.names[output.files_from]
    if output.rounding != "nearest":
        yield "rounding", output.rounding
    if output.drop:
        yield "drop", list(output.drop)
