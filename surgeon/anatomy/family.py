"""How a family's table of tensors is written: what each tensor does with the residual stream. Declared, never guessed.

A family is one file in `surgeon.anatomy.families` (or an entry point of the group ``surgeon.families``) that holds a
`Family` object. Names may hold ``{trunk}`` (the prefix of the bare model), ``{i}`` (a block), ``{e}`` (an expert) and
``{rest}`` (anything). What stands beside the language model, and writes nothing into its stream, is ``aside``: vision
towers, draft heads (which have a stream of their own). A projector writes: its last layer gives embeddings.
"""

from __future__ import annotations

import enum
import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points


class Role(enum.Enum):
    """What a tensor does with the residual stream."""

    WRITES_RESIDUAL = "writes_residual"
    READS_RESIDUAL = "reads_residual"
    UNEMBED = "unembed"
    NORM = "norm"
    OUTPUT_NORM = "output_norm"
    INSIDE = "inside"
    ASIDE = "aside"


class Part(enum.Enum):
    """Which part of the model writes: the words of a recipe's `writers:`."""

    EMBED = "embed"
    ATTENTION = "attention"
    MLP = "mlp"


@dataclass(frozen=True)
class Row:
    """Tensors of one name: their role, and for writers the part, the residual axis (-1 or -2) and output norms.

    `norms` are the gains on the path from this tensor to the stream, by name; their product scales what it writes.
    """

    name: str
    role: Role
    part: Part | None = None
    axis: int = -1
    norms: tuple[str, ...] = ()


def writes(name: str, part: Part, axis: int, *norms: str) -> Row:
    """A tensor that adds to the residual stream, along this axis, through these output norms."""
    return Row(name, Role.WRITES_RESIDUAL, part, axis, norms)


def rows(role: Role, *names: str, axis: int = -1) -> tuple[Row, ...]:
    """Tensors of one role."""
    return tuple(Row(name, role, axis=axis) for name in names)


@dataclass(frozen=True)
class Family:
    """One table, for every `model_type` that shares it.

    `trunks` are the prefixes the bare model may have on disk. `gain` is what is added to a norm's weight (1 where gains
    are stored as w − 1). `blocks` and `mid` are names in the loaded model: its list of blocks, relative to the trunk,
    and the module of a block whose input is the stream between attention and MLP. `width` is the config's key of d,
    `tied` whether embeddings are tied when the config does not say. `heads` names the head where it is called otherwise
    than `unembed` under a trunk. Of a model that sees, `language` is the module of the loaded one that is the language
    model.
    """

    name: str
    model_types: tuple[str, ...]
    rows: tuple[Row, ...]
    trunks: tuple[str, ...] = ("model.",)
    gain: float = 0.0
    width: str = "hidden_size"
    tied: bool = False
    blocks: str = "layers"
    mid: str = "post_attention_layernorm"
    embed: str = "{trunk}embed_tokens.weight"
    unembed: str = "lm_head.weight"
    heads: Mapping[str, str] = field(default_factory=dict)
    language: str = ""


@functools.cache
def families() -> Mapping[str, Family]:
    """Every declared family, by the config's `model_type`."""
    package = importlib.import_module("surgeon.anatomy.families")
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    modules += [point.load() for point in entry_points(group="surgeon.families")]
    declared = (value for module in modules for value in vars(module).values() if isinstance(value, Family))
    return {model_type: family for family in declared for model_type in family.model_types}


@functools.cache
def pattern(name: str, trunk: str) -> re.Pattern[str]:
    """The expression a row's name stands for under one prefix."""
    escaped = (
        re.escape(name.replace("{trunk}", trunk)).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{e\}", r"(?P<e>\d+)")
    )
    escaped = escaped.replace(r"\{rest\}", ".*")
    return re.compile(escaped)
