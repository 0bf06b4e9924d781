"""Settings, edits and directions as the data that a recipe holds of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from surgeon.errors import RefusedError
from surgeon.recipe.part_settings import part_data
from surgeon.space.expr import DataFit, DirectionRef, Edit, Expr, Fit, MergeSettings, Part, Reshape
from surgeon.space.fitter import SETS
from surgeon.space.registry import reshape_named
from surgeon.space.schedule import Layers, Rules, Setting


def settings_data(settings: MergeSettings, names: Mapping[Expr, str] | None = None) -> dict[str, Any]:
    """Settings as a recipe's keys; `names` are those of the models that fits among them are measured on."""
    return {
        name: _data_fit(value, names or {}) if isinstance(value, DataFit) else setting_data(value)
        for name, value in settings
    }


def _data_fit(fit: DataFit, names: Mapping[Expr, str]) -> dict[str, Any]:
    prompts = {"prompts": _absolute(fit.prompts)} if fit.prompts else {}
    return {"fit": fit.fit} | prompts | ({"model": names[fit.model]} if fit.model is not None else {})


def setting_data(setting: Setting) -> Any:
    """A value, a list over the layers or rules."""
    if isinstance(setting, Layers):
        return list(setting.values)
    if not isinstance(setting, Rules):
        return setting
    written = [{"targets": rule.targets, "value": setting_data(rule.value)} for rule in setting.rules]
    return [{key: value for key, value in rule.items() if value is not None} for rule in written]


def edit_data(edit: Edit, of: str, directions: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The keys of a step; `of` and `directions` are what its parts are called."""
    yield "edit", edit.edit
    yield "of", of
    if directions:
        yield "directions", list(directions)
    yield from settings_data(edit.settings).items()
    if edit.layers is not None:
        yield "layers", f"{edit.layers[0]}..{edit.layers[1]}"
    if edit.writers:
        yield "writers", edit.writers[0] if len(edit.writers) == 1 else list(edit.writers)
    if edit.tied != Edit.tied:
        yield "tied", edit.tied
    if edit.allow_partial:
        yield "allow_partial", True


def reshape_data(reshape: Reshape, names: Mapping[Expr, str]) -> Iterator[tuple[str, Any]]:
    """The keys of a step, its parts under those keys that the reshape declares."""
    yield "reshape", reshape.reshape
    operands, (first, *further) = reshape_named(reshape.reshape).operands, reshape.parts
    if "parts" in operands:
        yield "parts", [dict(_part(part, names)) for part in reshape.parts]
    else:
        yield "of", names[first.of]
        if further:
            yield "with", [names[part.of] for part in further]
    called = [names[part.of] for part in reshape.parts]
    yield from ((name, setting_data(part_data(value, called))) for name, value in reshape.settings)


def _part(part: Part, names: Mapping[Expr, str]) -> Iterator[tuple[str, str]]:
    yield "of", names[part.of]
    if part.layers is not None:
        yield "layers", f"{part.layers[0]}..{part.layers[1]}"
    if part.targets is not None:
        yield "targets", part.targets


def direction_data(use: DirectionRef, names: Mapping[Expr, str]) -> str | dict[str, Any]:
    """The entry of a direction. A path is written as it is; RefusedError for one that is only in memory."""
    if isinstance(use.source, str):
        return {"file": use.source, "at": use.at} if use.at else use.source
    if isinstance(use.source, Fit):
        return dict(_fit(use.source, names))
    label = use.name or use.source.about.get("name") or "a direction"
    message = f"{label} is in memory only, and a recipe names a file"
    raise RefusedError(message, origin=use.origin, hint="save it first: direction.save(path)")


def _fit(fit: Fit, names: Mapping[Expr, str]) -> Iterator[tuple[str, Any]]:
    yield "fit", fit.fitter
    yield "model", names[fit.model]
    yield "positive", _absolute(fit.positive)
    yield "negative", _absolute(fit.negative)
    yield "at", fit.at
    for name, value in fit.settings:
        yield name, _absolute(value) if name in SETS and isinstance(value, str) else setting_data(value)


def _absolute(path: str) -> str:
    return os.path.normpath(Path(path).expanduser().absolute())
