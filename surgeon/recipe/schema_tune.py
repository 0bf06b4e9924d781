"""The shape of a recipe's `tune:`: what `surgeon tune` reads; `plan` and `apply` build the numbers as they stand."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from surgeon.recipe.document import kind
from surgeon.recipe.setting_types import Strict, Wrong, path

_Path = Annotated[str, AfterValidator(path)]


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | Fraction) or value < 0:
        raise Wrong(f"a number from 0 on is needed, not {kind(value)}")
    return float(value)


_Number = Annotated[Any, PlainValidator(_positive), WithJsonSchema({"type": "number", "minimum": 0})]
_Count = Annotated[int, Field(ge=0)]


class TuneSection(Strict):
    """How coefficients are learned, or open numbers searched."""

    prompts: dict[str, _Path] | None = Field(None, description="A file of prompts (JSON lines) for each expert.")
    neutral: _Path | None = Field(None, description="Neutral chats and text, to which the base's answers are kept.")
    per: Literal["model", "layer", "tensor", "row"] | None = Field(
        None, description="What has a coefficient of its own; row: every output row."
    )
    steps: _Count | None = Field(None, description="Steps of learning.")
    rate: _Number | None = Field(None, description="Adam's first rate; it falls to zero.")
    guard: _Number | None = Field(None, description="Weight of KL to the base on neutral examples.")
    batch: Annotated[int, Field(ge=1)] | None = Field(None, description="Prompts of each skill in a step.")
    trials: Annotated[int, Field(ge=1)] | None = Field(None, description="How many choices of numbers are tried.")
    budget: _Number | None = Field(None, description="Chat KL, nats a token, above which a choice loses.")
    score: Literal["mean", "worst"] | None = Field(None, description="Which agreement of the skills is searched for.")
    tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="Longest answer that is looked at.")
    seed: _Count | None = Field(None, description="Of batches and search.")
