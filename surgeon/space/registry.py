"""Finding methods, edits, reshapes and fitters: files in surgeon's folders, and other packages' modules (entry points).

What another package brings is called ``package/name``.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from surgeon.errors import RefusedError, nearest

if TYPE_CHECKING:
    from surgeon.space.edit import EditMethod
    from surgeon.space.fitter import Fitter
    from surgeon.space.method import MergeMethod
    from surgeon.space.reshape import Reshaping


def _declared(kind: str, folder: str = "") -> Iterator[tuple[str, Any]]:
    """What the modules of a folder and of the entry points of its group hold, each with its owner ("" for surgeon)."""
    package = importlib.import_module(f"surgeon.{folder or kind}")
    for module in pkgutil.iter_modules(package.__path__):
        yield from (
            ("", value) for value in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values()
        )
    for point in entry_points(group=f"surgeon.{kind}"):
        owner = point.dist.name if point.dist else point.module.partition(".")[0]
        yield from ((owner, value) for value in vars(point.load()).values())


def _registered(kind: str, what: type, folder: str = "") -> dict[str, Any]:
    owned = [(owner, value) for owner, value in _declared(kind, folder) if isinstance(value, what)]
    named = [replace(value, owner=owner) if owner else value for owner, value in owned]
    return {value.name: value for value in sorted(named, key=lambda value: value.name)}


@functools.cache
def merge_methods() -> Mapping[str, MergeMethod]:
    """Every registered merge method by its recipe name."""
    from surgeon.space.method import MergeMethod

    return _registered("methods", MergeMethod)


@functools.cache
def edits() -> Mapping[str, EditMethod]:
    """Every registered edit by its recipe name."""
    from surgeon.space.edit import EditMethod

    return _registered("edits", EditMethod)


@functools.cache
def fitters() -> Mapping[str, Fitter]:
    """Every registered fitter of directions by its recipe name."""
    from surgeon.space.fitter import Fitter

    return _registered("fitters", Fitter, "directions.fitters")


@functools.cache
def reshapes() -> Mapping[str, Reshaping]:
    """Every reshape by name."""
    from surgeon.space.reshape import Reshaping

    found = {value for _, value in _declared("reshapes") if isinstance(value, type) and issubclass(value, Reshaping)}
    return {kind.name: kind() for kind in sorted(found - {Reshaping}, key=lambda kind: kind.name)}


def merge_method_named(name: str) -> MergeMethod:
    """The method a recipe names. RefusedError with the nearest name when there is none."""
    return _named("merge method", name, merge_methods())


def edit_named(name: str) -> EditMethod:
    """The edit a recipe names. RefusedError with the nearest name when there is none."""
    return _named("edit", name, edits())


def fitter_named(name: str) -> Fitter:
    """The fitter a recipe names. RefusedError with the nearest name when there is none."""
    return _named("fitter", name, fitters())


def reshape_named(name: str) -> Reshaping:
    """The reshape a recipe names. RefusedError with the nearest name when there is none."""
    return _named("reshape", name, reshapes())


def _named(what: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise RefusedError(f"there is no {what} {name!r}", hint=nearest(name, known))
    return known[name]
