"""Untie: the head gets a copy of the embedding, so that one can be edited without the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.space.reshape import Drawn, Operand, Reshaping


class Untie(Reshaping):
    """Writes the head that a tied model reads from its embedding, and says so in the config."""

    name = "untie"

    def tensors(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Mapping[str, Drawn]:
        """The operand's tensors, and the head with the embedding's bytes."""
        (model,) = operands
        anatomy = model.anatomy
        kept = {name: Drawn(spec, ((0, name),)) for name, spec in model.table.items()}
        return {**kept, anatomy.unembed: kept[anatomy.embed]}

    def config(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The keys that change."""
        text = operands[0].config.get("text_config")
        changed: dict[str, Any] = {"tie_word_embeddings": False}
        if isinstance(text, Mapping) and "tie_word_embeddings" in text:
            changed["text_config"] = {**text, "tie_word_embeddings": False}
        return changed
