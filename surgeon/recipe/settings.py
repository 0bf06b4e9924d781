"""Settings in recipes: a number, word or flag, a list over the layers, or rules; each value checked in its place."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from surgeon.artifacts.artifact import Artifact
from surgeon.errors import nearest
from surgeon.recipe.document import Node, kind
from surgeon.recipe.faults import Faults
from surgeon.recipe.scalars import fraction
from surgeon.space.parameters import Parameter
from surgeon.space.schedule import Layers, Rule, Rules, Scalar, Schedule, Setting
from surgeon.space.select import check_pattern

_TUNING = ("search", "kl", "learn")
_RULE = ("targets", "value")


def read_setting(node: Node, parameter: Parameter, faults: Faults) -> Setting | None:
    """The setting a node spells; None, with faults noted, where it is not one of this parameter."""
    if issubclass(parameter.type, Artifact):
        return _file(node, parameter, faults)
    if isinstance(node.value, tuple) and node.items and all(item.mapping for item in node.items):
        return _rules(node, parameter, faults)
    return _value(node, parameter, faults)


def read_schedule(name: str, node: Node, faults: Faults) -> Schedule | None:
    """A schedule that a combine step declares: a list over the layers, or rules, of numbers."""
    setting = read_setting(node, Parameter(name, name, float, False, None), faults)
    if setting is None or isinstance(setting, Layers | Rules):
        return setting and replace(setting, name=name)
    faults.add(f"{name!r} is one number; write it into the expression, or give a list over the layers", node)
    return None


def _file(node: Node, parameter: Parameter, faults: Faults) -> str | None:
    """The absolute path of an artifact, relative to the recipe's folder or, if typed, to the working directory."""
    if not node.text:
        faults.add(f"{parameter.name!r} takes the path of an artifact file, not {kind(node)}", node)
        return None
    folder = Path() if node.from_user else Path(node.at.file).parent
    return os.path.normpath((folder / Path(node.text).expanduser()).absolute())


def _value(node: Node, parameter: Parameter, faults: Faults) -> Scalar | Layers | None:
    """A scalar, or a list of them."""
    if not isinstance(node.value, tuple):
        return _scalar(node, parameter, faults)
    if not node.items:
        faults.add(f"{parameter.name!r} is an empty list", node, "a list holds the values from first to last layer")
        return None
    values = [_scalar(item, parameter, faults) for item in node.items]
    return Layers(tuple(value for value in values if value is not None)) if None not in values else None


def _rules(node: Node, parameter: Parameter, faults: Faults) -> Rules | None:
    rules = [_rule(item, parameter, faults) for item in node.items]
    for item in node.items[:-1]:
        if item.get("targets") is None:
            faults.add("a rule without targets fits every tensor; the rules after it are never reached", item)
    return Rules(tuple(rule for rule in rules if rule)) if None not in rules else None


def _rule(node: Node, parameter: Parameter, faults: Faults) -> Rule | None:
    for key, unknown in node.mapping.items():
        if key not in _RULE:
            faults.add_at_key(f"unknown key {key!r} in a rule", unknown, nearest(key, _RULE))
    targets, given = node.get("targets"), node.get("value")
    fine = targets is None or _check_targets(targets, faults)
    if given is None:
        faults.add("this rule has no value", node, "a rule is {targets: PATTERN, value: VALUE}")
        return None
    value = _value(given, parameter, faults)
    return Rule(targets.text if targets else None, value) if value is not None and fine else None


def _check_targets(node: Node, faults: Faults) -> bool:
    """Whether a rule's targets are a valid pattern; what is wrong is noted."""
    try:
        if not node.text:
            raise ValueError(f"targets is a pattern over tensor names, not {kind(node)}")
        if node.text.startswith("role:"):
            raise ValueError("roles as targets are not in this version; write a glob or a re: pattern")
        check_pattern(node.text)
    except (ValueError, OverflowError, RecursionError) as error:
        faults.add(str(error), node)
        return False
    return True


def _scalar(node: Node, parameter: Parameter, faults: Faults) -> Scalar | None:
    """One value, numbers exact, checked as every way into the parameter checks it."""
    if node.mapping:
        _explain(node, parameter, faults)
        return None
    value: Any = node.value
    if isinstance(value, str) and parameter.type in (float, int):
        exact = fraction(value)
        value = value if exact is None else exact
    value = Fraction(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(value, Fraction | str | bool):
        faults.add(f"{parameter.name} takes a value or a list of them, not {kind(node)} inside", node)
    elif reason := parameter.fault(value):
        faults.add(reason, node, nearest(value, parameter.choices) if isinstance(value, str) else "")
    else:
        return value
    return None


def _explain(node: Node, parameter: Parameter, faults: Faults) -> None:
    """Why a mapping is no value."""
    if word := next((word for word in _TUNING if word in node.mapping), None):
        faults.add(f"{{{word}: …}} asks for tuning, which this version does not do", node, "write a number")
    else:
        hint = "rules are a list: [{targets: PATTERN, value: VALUE}, …]"
        faults.add(f"{parameter.name} takes a value, a list of them or rules, not a mapping", node, hint)
