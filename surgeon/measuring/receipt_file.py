"""The receipt of an output, read as if an attacker had written it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from surgeon.engine.receipt import NAME
from surgeon.errors import CheckpointError, RefusedError, VerificationError
from surgeon.store.json_files import read_object


class _Part(BaseModel):
    """A part of a receipt: no key more, no key less."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RecipeTexts(_Part):
    """The recipe as it was given and as it was resolved."""

    given: str | None
    resolved: str


class FileFacts(_Part):
    """Size and header digest of a weight file."""

    size: int
    header: str


class InputFacts(_Part):
    """One input: what it was called, its weight files, and the blake3 of its own receipt where it had one."""

    name: str
    kind: Literal["model", "adapter", "gram", "merged_gram", "fisher"]
    ref: str
    revision: str | None
    receipt: str | None = None
    files: dict[str, FileFacts]


class SideFacts(_Part):
    """Whose side files the output carries, and their hashes by name."""

    source: str = Field(alias="from")
    blake3: dict[str, str]


class TensorFacts(_Part):
    """One output tensor."""

    action: Literal["copy", "compute"]
    reason: str
    dtype: str
    shape: list[int]
    file: str
    blake3: str
    inputs: dict[str, str]
    error: float | None = None


class UseFacts(_Part):
    """A direction of an invariant: its file in surgeon/ and the residual point."""

    file: str
    point: str


class ZeroFacts(_Part):
    """A zero that is promised: QᵀW of a tensor along an axis, Q of directions and gains; its norm before and after."""

    tensor: str
    zero: Literal["QᵀW"]
    edit: str
    axis: Literal[-1, -2]
    directions: list[UseFacts]
    gains: list[str]
    gain: float
    before: float
    after: float


class ReceiptFacts(_Part):
    """A whole receipt of version 1."""

    version: Literal[1]
    recipe: RecipeTexts
    inputs: list[InputFacts]
    files: dict[str, FileFacts]
    side_files: SideFacts
    tensors: dict[str, TensorFacts]
    dropped: list[str]
    artifacts: dict[str, str] = Field(default_factory=dict)
    invariants: list[ZeroFacts]
    tier: Literal["A", "B"]
    made_with: dict[str, str]


def read_receipt(folder: Path) -> ReceiptFacts:
    """The receipt in a folder; RefusedError where there is none, VerificationError where it is no receipt."""
    path = folder / NAME
    if not path.is_file():
        raise RefusedError(
            f"{folder} holds no {NAME}, so it makes no claim that could be proven",
            hint="judge it by a recipe: surgeon verify OUT --recipe RECIPE",
        )
    return receipt_in(path)


def receipt_in(path: Path) -> ReceiptFacts:
    """The receipt that is a file; VerificationError where it is none."""
    try:
        return facts_of(read_object(path), str(path))
    except CheckpointError as error:
        raise VerificationError(f"{path} is damaged: {error.message}") from None


def facts_of(content: Mapping[str, Any], label: str) -> ReceiptFacts:
    """The facts of a receipt's JSON; VerificationError where it is none."""
    try:
        return ReceiptFacts.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise VerificationError(f"{label} is not a receipt this version knows: {where}: {first['msg']}") from None
