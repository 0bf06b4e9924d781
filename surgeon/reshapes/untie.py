"""Untie: the head gets a copy of the embedding, so that one can be edited without the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from surgeon.anatomy.describe import Anatomy
from surgeon.space.reshape import Reshaping, Table


class Untie(Reshaping):
    """Writes the head that a tied model reads from its embedding, and says so in the config."""

    name = "untie"

    def table(self, table: Table, anatomy: Anatomy) -> Table:
        """The operand's tensors and the head, of the embedding's shape and dtype."""
        return {**table, anatomy.unembed: table[anatomy.embed]}

    def source(self, tensor: str, anatomy: Anatomy) -> str:
        """The embedding for the head, itself for the others."""
        return anatomy.embed if tensor == anatomy.unembed else tensor

    def config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The keys that change."""
        return {"tie_word_embeddings": False}
