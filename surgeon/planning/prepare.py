"""What planning makes of an expression first: a tied embedding that is edited is untied, by declaration.

Directions that will be fitted are stood in for, so that shapes and costs are known before anything is measured.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from surgeon.anatomy.describe import describe, is_tied, language_config
from surgeon.anatomy.family import families
from surgeon.artifacts.direction import OWN, OWN_MID, Direction, bank
from surgeon.errors import MismatchError, nearest
from surgeon.planning.resolve import Resolver
from surgeon.space.coefficient import Coefficient
from surgeon.space.expr import (
    Combination,
    DataFit,
    DirectionRef,
    Edit,
    Expr,
    Fit,
    Member,
    Merge,
    MergeSettings,
    Model,
    Part,
    Reshape,
    walk,
)


def rebuilt(expr: Expr, made: dict[Expr, Expr]) -> Expr:
    """The expression with every part replaced as `made` says."""
    if isinstance(expr, Combination):
        terms: tuple[tuple[Expr, Coefficient], ...] = tuple((made[term], c) for term, c in expr.terms)
        return replace(expr, terms=terms)
    if isinstance(expr, Merge):
        members = tuple(Member(made[member.of], _settings(member.settings, made)) for member in expr.members)
        base = made[expr.base_model] if expr.base_model is not None else None
        return replace(expr, members=members, base_model=base, settings=_settings(expr.settings, made))
    if isinstance(expr, Edit):
        uses = tuple(
            replace(use, source=replace(use.source, model=made[use.source.model]))
            if isinstance(use.source, Fit)
            else use
            for use in expr.directions
        )
        return replace(expr, of=made[expr.of], directions=uses)
    if isinstance(expr, Reshape):
        return replace(expr, parts=tuple(replace(part, of=made[part.of]) for part in expr.parts))
    if isinstance(expr, Model) and expr.base_model is not None:
        return replace(expr, base_model=made[expr.base_model])
    return expr


def _settings(given: MergeSettings, made: dict[Expr, Expr]) -> MergeSettings:
    """Settings with the models that fits among them are measured on replaced."""
    return tuple(
        (name, replace(value, model=made[value.model]) if isinstance(value, DataFit) and value.model else value)
        for name, value in given
    )


def untied(expr: Expr, resolver: Resolver) -> Expr:
    """The expression with `untie` in front of every edit that reaches a tied embedding and asks for it."""
    made: dict[Expr, Expr] = {}
    for node in walk(expr):
        again = rebuilt(node, made)
        if isinstance(again, Edit) and _reaches_tied(again, resolver):
            again = replace(again, of=Reshape("untie", (Part(again.of),), origin=again.origin))
        made[node] = again
    return made[expr]


def _reaches_tied(edit: Edit, resolver: Resolver) -> bool:
    if edit.tied != "untie" or edit.layers is not None:
        return False
    config = resolver.on(None)(edit.of).config
    family = families().get(str(config.get("model_type", "")))
    if family is None:
        return False
    return is_tied(config, family) and (not edit.writers or "embed" in edit.writers)


def fits(expr: Expr) -> tuple[Fit, ...]:
    """The directions an expression fits, in the order in which they can be."""
    found = [use.source for node in walk(expr) if isinstance(node, Edit) for use in node.directions]
    return tuple(dict.fromkeys(source for source in found if isinstance(source, Fit)))


def with_directions(expr: Expr, fitted: dict[Fit, DirectionRef]) -> Expr:
    """The expression with fits replaced by what they gave; a fit stands for itself where `fitted` has none."""
    made: dict[Expr, Expr] = {}
    for node in walk(expr):
        if isinstance(node, Edit):
            uses = tuple(
                replace(fitted[use.source], name=use.name)
                if isinstance(use.source, Fit) and use.source in fitted
                else use
                for use in node.directions
            )
            made[node] = rebuilt(replace(node, directions=uses), made)
        else:
            made[node] = rebuilt(node, made)
    return made[expr]


def stand_in(fit: Fit, resolver: Resolver) -> Direction:
    """A direction of the shape a fit will give, for planning."""
    if resolver.is_adapter(fit.model):
        hint = f"measure on a step: combine: base + 1*{fit.model}"
        raise MismatchError(f"{fit.model} is an adapter; a direction is measured on a model", hint=hint)
    config = resolver.on(None)(fit.model).config
    family = families().get(str(config.get("model_type", "")))
    if family is None:
        describe(config, {}, str(fit.model))
    assert family is not None
    config = language_config(config)
    layers = next((int(config[key]) for key in ("num_hidden_layers", "n_layer") if key in config), 0)
    if not layers or family.width not in config:
        raise MismatchError(
            f"{fit.model}: config.json does not say how many layers it has, or how wide", origin=fit.origin
        )
    points = ["embed", *(f"block.{i}{mid}" for i in range(layers) for mid in (".mid", ""))]
    rank = int(next((value for name, value in fit.settings if name == "rank"), 1))  # type: ignore[arg-type]
    wanted = points if fit.at in (OWN, OWN_MID) else [fit.at]
    if unknown := set(wanted) - set(points):
        raise MismatchError(f"{fit.model} has no residual point {fit.at!r}", hint=nearest(unknown.pop(), points))
    return bank({point: torch.ones(rank, int(config[family.width])) for point in wanted}, at=fit.at, name=fit.name)
