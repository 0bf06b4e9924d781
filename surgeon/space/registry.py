"""Finding methods: files in `surgeon.methods`, and modules of other packages (entry points) as ``package/name``."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from surgeon.errors import RefusedError, nearest

if TYPE_CHECKING:
    from surgeon.space.method import MergeMethod


@functools.cache
def merge_methods() -> Mapping[str, MergeMethod]:
    """Every registered merge method by its recipe name."""
    from surgeon.space.method import MergeMethod

    package = importlib.import_module("surgeon.methods")
    found: dict[str, MergeMethod] = {}
    for module in pkgutil.iter_modules(package.__path__):
        members = vars(importlib.import_module(f"surgeon.methods.{module.name}")).values()
        found |= {method.name: method for method in members if isinstance(method, MergeMethod)}
    for point in entry_points(group="surgeon.methods"):
        owner = point.dist.name if point.dist else point.module.partition(".")[0]
        for method in vars(point.load()).values():
            if isinstance(method, MergeMethod):
                found[f"{owner}/{method.name}"] = replace(method, owner=owner)
    return dict(sorted(found.items()))


def merge_method_named(name: str) -> MergeMethod:
    """The method a recipe names. RefusedError with the nearest name when there is none."""
    methods = merge_methods()
    if name not in methods:
        raise RefusedError(f"there is no merge method {name!r}", hint=nearest(name, methods))
    return methods[name]
