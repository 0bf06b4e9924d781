"""Entries of a recipe as they are built: where one stands, what the names it uses mean, what was read of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from surgeon.artifacts.artifact import Artifact
from surgeon.errors import Origin
from surgeon.recipe.document import Faults, Node
from surgeon.recipe.names import absolute
from surgeon.space.expr import DataFit, DirectionRef, Expr, Settings, settings
from surgeon.space.parameters import Parameter


class Use(NamedTuple):
    """A name used somewhere: that of a direction, or else of a model or step."""

    name: str
    origin: Origin
    direction: bool = False


@dataclass(frozen=True)
class Entry:
    """A model, direction or step to be built: where it stands, what the names it uses mean, all names of the recipe.

    `read` is the entry as `schema` read it, with settings checked and converted; None where the recipe has faults.
    Relative paths start from `folder`.
    """

    name: str
    node: Node
    read: Any
    known: Mapping[str, Expr]
    directions: Mapping[str, DirectionRef]
    names: Collection[str]
    folder: Path

    def path(self, node: Node) -> str:
        """The absolute path that a text of this entry means."""
        return absolute(node.text, Path.cwd() if node.from_user else self.folder)

    def settings(self, parameters: Mapping[str, Parameter], read: Any, node: Node) -> Settings:
        """The settings given at the entry or a part of it; the path of an artifact is made absolute."""
        found = {}
        for name in read.model_fields_set & parameters.keys() if read else ():
            value, inner = getattr(read, name), node.mapping[name]
            if issubclass(parameters[name].type, Artifact):
                value = self.path(inner) if isinstance(value, str) else self._fit(inner)
            found[name] = value
        return settings(found)

    def _fit(self, node: Node) -> DataFit:
        """What is to be measured, at a setting."""
        prompts, model = node.get("prompts"), node.get("model")
        return DataFit(
            node.mapping["fit"].text,
            self.path(prompts) if prompts else "",
            self.known[model.text] if model else None,
            origin=node.start,
        )


class Kind(NamedTuple):
    """A kind of entry. `uses` is None for what cannot be told; `build` notes what is wrong and then gives None."""

    uses: Callable[[Node], tuple[Use, ...] | None]
    build: Callable[[Entry, Faults], Expr | DirectionRef | None]


def used(node: Node, key: str) -> tuple[Use, ...]:
    """The use of a model or step by the name at a key, where there is one."""
    inner = node.get(key)
    return (Use(inner.text, inner.at),) if inner and isinstance(inner.value, str) else ()
