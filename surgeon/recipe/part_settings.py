"""Settings of a reshape that name its parts, as recipes write them: which model's tokenizer, and sources of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from surgeon.errors import nearest
from surgeon.recipe.document import Faults, Node
from surgeon.recipe.setting_types import Strict, Wrong, single_type
from surgeon.space.parameters import Parameter
from surgeon.space.parts import BASE, PartNumber, TokenSources, token_data, token_sources


class ZeroSource(Strict):
    """A row of zeros."""

    kind: Literal["zero"]


class ModelTokenSource(Strict):
    """The row that a model has for another token."""

    kind: Literal["model_token"]
    model: str = Field(description="One of the models.")
    token: str | None = Field(None, description="The token it is the row of.")
    token_id: int | None = Field(None, ge=0, description="Or its number.")


def _form(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return {"zero": "<zero>", "model_token": "<model_token>"}.get(value.get("kind", ""))
    return "<text>"


def _one_of_both(source: Any) -> Any:
    if isinstance(source, ModelTokenSource) and (source.token is None) == (source.token_id is None):
        raise Wrong("a model_token names its token or its token_id")
    return source


class TokenEntry(Strict):
    """Where the row of a token comes from."""

    source: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[ZeroSource, Tag("<zero>")]
        | Annotated[ModelTokenSource, Tag("<model_token>")],
        Discriminator(_form),
        AfterValidator(_one_of_both),
    ] = Field(description="A model, {kind: zero}, or {kind: model_token, model: …, token: …}.")
    force: bool | None = Field(None, description="In every model, also in those that have the token.")


def part_type(parameter: Parameter) -> Any:
    """The type of a reshape's setting."""
    if parameter.type is PartNumber:
        return str
    return dict[str, TokenEntry] if parameter.type is TokenSources else single_type(parameter)


def read_part_setting(
    parameter: Parameter, value: Any, parts: Mapping[str, int], base: int, node: Node, faults: Faults
) -> Any:
    """A setting as an expression holds it. `parts` are the numbers of the models by name, `base` that of the first."""

    def number(name: str) -> int:
        if name not in parts:
            faults.add(f"{name!r} is none of this step's models", node, nearest(name, parts))
        return parts.get(name, 0)

    if parameter.type is PartNumber and value not in parameter.choices:
        return PartNumber(base if value == BASE and BASE not in parts else number(value))
    if parameter.type is TokenSources:
        return token_sources({token: _plain(entry) for token, entry in value.items()}, number)
    return value


def _plain(entry: TokenEntry) -> dict[str, Any]:
    """The entry as data, without pydantic's models."""
    source = entry.source
    return {"source": source if isinstance(source, str) else dict(source), "force": entry.force}


def part_data(value: Any, names: Sequence[str]) -> Any:
    """A setting as a recipe writes it, with the parts' names."""
    if isinstance(value, PartNumber):
        return names[value.number]
    return token_data(value, names.__getitem__) if isinstance(value, TokenSources) else value
