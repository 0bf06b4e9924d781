"""A checkpoint's anatomy: what each of its tensors is, by the table of its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.anatomy.family import Family, Part, Role, Row, families, pattern
from surgeon.anatomy.stacks import COUNTS, in_stack
from surgeon.errors import MismatchError, nearest
from surgeon.tensors import ACTIVATIONS, TensorSpec


@dataclass(frozen=True)
class Place:
    """One tensor: its role, and for a writer the part, the residual axis (-1 or -2) and its output norms' gains."""

    role: Role
    part: Part | None = None
    axis: int = -1
    norms: tuple[str, ...] = ()
    block: int | None = None
    expert: int | None = None

    def point(self, mid: bool = False) -> str:
        """The residual point after this writer's block (with `mid`, after its attention)."""
        if self.part is Part.EMBED or self.block is None:
            return "embed"
        return f"block.{self.block}.mid" if mid and self.part is Part.ATTENTION else f"block.{self.block}"


@dataclass(frozen=True)
class Anatomy:
    """What is known of a checkpoint's tensors. `unknown` are those no row of the table names."""

    family: Family
    trunk: str
    width: int
    blocks: int
    tied: bool
    places: Mapping[str, Place]
    unknown: tuple[str, ...]

    @property
    def embed(self) -> str:
        """The embedding's name."""
        return self.family.embed.replace("{trunk}", self.trunk)

    @property
    def unembed(self) -> str:
        """The name of the head that reads the stream out."""
        return self.family.heads.get(self.trunk, self.family.unembed).replace("{trunk}", self.trunk)

    def points(self) -> tuple[str, ...]:
        """Every residual point: ``embed``, then each block's middle and end."""
        inner = (name for block in range(self.blocks) for name in (f"block.{block}.mid", f"block.{block}"))
        return ("embed", *inner)

    def writers(self) -> dict[str, Place]:
        """The tensors that add to the residual stream."""
        return {name: place for name, place in self.places.items() if place.role is Role.WRITES_RESIDUAL}

    def aside(self) -> tuple[str, ...]:
        """The tensors beside the language model, which no edit of its stream reaches."""
        return tuple(name for name, place in self.places.items() if place.role is Role.ASIDE)


def describe(config: Mapping[str, Any], table: Mapping[str, TensorSpec], label: str = "the model") -> Anatomy:
    """The anatomy of a table of tensors. MismatchError for an architecture without a table, or axes that do not fit."""
    model_type = str(config.get("model_type", ""))
    family = families().get(model_type)
    if family is None:
        found = repr(model_type) if model_type else "no model_type in its config.json"
        raise MismatchError(
            f"{label}: edits must know which tensors write the residual stream; no table is declared for {found}",
            hint=nearest(model_type, families()) + "; a new family is one table (CONTRIBUTING.md)",
        )
    trunk = next((t for t in family.trunks if family.embed.replace("{trunk}", t) in table), family.trunks[0])
    text, places = language_config(config), dict[str, Place]()
    count = next((int(text[key]) for key in COUNTS if key in text), None)
    for name in table:
        place = _place(family, trunk, name, count)
        if place is not None:
            places[name] = place
    unknown = tuple(name for name in table if name not in places)
    width = _width(text, family, label)
    _check_axes(places, table, width, label)
    blocks = 1 + max((place.block for place in places.values() if place.block is not None), default=-1)
    return Anatomy(family, trunk, width, blocks, is_tied(config, family), places, unknown)


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, Mapping) else config


def _place(family: Family, trunk: str, name: str, count: int | None) -> Place | None:
    """The place of a tensor. A numbered layer behind the last one, `count`, is a draft head's."""
    for row in family.rows:
        if found := pattern(row.name, trunk).fullmatch(name):
            place = _placed(row, trunk, found.groupdict())
            return Place(Role.ASIDE) if count and place.block is not None and place.block >= count else place
    inside = in_stack(name)
    if inside is not None and count and inside[0].prefix == f"{trunk}layers." and inside[1] >= count:
        return Place(Role.ASIDE)
    return Place(Role.INSIDE) if name.rpartition(".")[2] in ACTIVATIONS else None


def _placed(row: Row, trunk: str, numbers: Mapping[str, str]) -> Place:
    norms = tuple(norm.replace("{trunk}", trunk).replace("{i}", numbers.get("i", "")) for norm in row.norms)
    block, expert = numbers.get("i"), numbers.get("e")
    return Place(row.role, row.part, row.axis, norms, _number(block), _number(expert))


def _width(config: Mapping[str, Any], family: Family, label: str) -> int:
    try:
        return int(config[family.width])
    except (KeyError, TypeError, ValueError):
        raise MismatchError(f"{label}: config.json does not say {family.width}, the width of the stream") from None


def is_tied(config: Mapping[str, Any], family: Family) -> bool:
    """Whether the head reads the embedding; of a model that sees, where either part of its config says so."""
    parts = (part for part in (config, config.get("text_config")) if isinstance(part, Mapping))
    said = [bool(part["tie_word_embeddings"]) for part in parts if part.get("tie_word_embeddings") is not None]
    return any(said) if said else family.tied


def _check_axes(places: Mapping[str, Place], table: Mapping[str, TensorSpec], width: int, label: str) -> None:
    faults = []
    for name, place in places.items():
        if place.role is Role.WRITES_RESIDUAL:
            shape = table[name].shape
            if len(shape) < -place.axis or shape[place.axis] != width:
                faults.append(f"{name} {table[name]}: axis {place.axis} should be {width}")
            faults += [f"{name} writes through {norm}, which is not there" for norm in place.norms if norm not in table]
    if faults:
        listed = "\n    ".join(faults[:20])
        raise MismatchError(f"{label} does not fit the table of its family:\n    {listed}")


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
