"""Writing expressions in Python: `open` names a checkpoint, `merge` applies a method. Nothing is read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from surgeon.artifacts.artifact import Artifact
from surgeon.errors import Fault, RecipeError, RefusedError, nearest
from surgeon.space.expr import DataFit, Expr, Member, Merge, Model, settings
from surgeon.space.parameters import Parameter
from surgeon.space.registry import merge_method_named
from surgeon.space.schedule import Layers, Rule, Rules, Setting, exact


def open(ref: str | Path, *, base_model: Expr | None = None) -> Model:
    """A model or LoRA adapter, by path (starting with ./ ../ / or ~, or a `Path`) or Hub id ``org/name[@revision]``.

    `base_model` is what an adapter's replaced tensors are differences from; by default the model it is added to.
    """
    if isinstance(ref, Path) or ref.startswith(("./", "../", "/", "~")):
        ref = os.path.normpath(Path(ref).expanduser().absolute())
    return Model(ref, base_model, name=Path(ref.partition("@")[0]).name)


def given(ref: str | Path) -> Model:
    """A model as verbs are told of it: what lies at this path, if it exists, else a Hub id."""
    return open(Path(ref) if Path(ref).expanduser().exists() else ref)


def merge(
    method: str,
    models: Sequence[Expr],
    *,
    base_model: Expr | None = None,
    semantics: str = "paper",
    name: str = "",
    **given: Any,
) -> Merge:
    """Merge models with a registered method; `surgeon.list_methods(NAME)` tells its settings.

    A setting that is one number a model takes a number for all or a sequence with one value a model; any number may be
    a `Layers` or `Rules` schedule. RecipeError lists every unknown setting and value out of range.
    """
    found = merge_method_named(method)
    shared: dict[str, Setting | DataFit] = {}
    own: list[dict[str, Setting | DataFit]] = [{} for _ in models]
    faults: list[Fault] = []
    for argument, value in given.items():
        parameter = found.parameters.get(argument.rstrip("_"))
        if parameter is None:
            faults.append(Fault(f"{method} has no setting {argument!r}", hint=nearest(argument, found.parameters)))
        elif parameter.per_model and isinstance(value, Sequence) and not isinstance(value, str):
            if len(value) != len(models):
                faults.append(Fault(f"{argument} has {len(value)} values for {len(models)} models"))
            for settings_of_one, one in zip(own, value, strict=False):
                settings_of_one[parameter.name] = setting_of(parameter, one, faults)
        else:
            shared[parameter.name] = setting_of(parameter, value, faults)
    for operand in (*models, *(() if base_model is None else (base_model,))):
        if not isinstance(operand, Expr):
            faults.append(Fault(f"{operand!r} is no model", hint=f"write surgeon.open({str(operand)!r})"))
    if base_model is not None and not found.takes_base:
        faults.append(Fault(f"{method} has no base_model", hint="list it among the models, with a weight"))
    if base_model is None and found.needs_base:
        faults.append(Fault(f"{method} needs a base_model", hint="name the model the others were made from"))
    missing = [p.name for p in found.parameters.values() if p.required and p.name not in shared.keys() | _common(own)]
    faults += [Fault(f"{method} needs {name!r}") for name in missing]
    if faults:
        raise RecipeError(faults)
    members = tuple(Member(model, settings(one)) for model, one in zip(models, own, strict=True))
    if not members:
        raise RefusedError(f"{method} needs models", hint="give a list of at least one")
    return Merge(method, members, base_model, settings(shared), semantics, name)


def _common(own: Sequence[Mapping[str, Any]]) -> set[str]:
    return set.intersection(*(set(one) for one in own)) if own else set()


def setting_of(parameter: Parameter, value: Any, faults: list[Fault]) -> Any:
    """One setting as written in Python; faults are added to the list."""
    if isinstance(value, DataFit):
        faults += [Fault(fault) for fault in [parameter.fault(value)] if fault]
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = Layers(tuple(_scalar(one, faults) for one in value))
    if issubclass(parameter.type, Artifact) and isinstance(value, str | Path):
        return os.path.normpath(Path(value).expanduser().absolute())
    setting = value if isinstance(value, Layers | Rules) else _scalar(value, faults)
    faults += [Fault(fault) for one in _scalars(setting) if (fault := parameter.fault(one))]
    return setting


def _scalar(value: Any, faults: list[Fault]) -> Fraction | bool | str:
    if isinstance(value, bool | str):
        return value
    try:
        return exact(value)
    except ValueError as error:
        faults.append(Fault(str(error)))
        return Fraction(0)


def _scalars(setting: Setting | Rule) -> list[Fraction | bool | str]:
    if isinstance(setting, Layers):
        return list(setting.values)
    if isinstance(setting, Rules):
        return [scalar for rule in setting.rules for scalar in _scalars(rule.value)]
    return [] if isinstance(setting, Rule) else [setting]
