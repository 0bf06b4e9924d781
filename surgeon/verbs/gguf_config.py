"""What a GGUF says of a model's rotary embedding and transformers' loader does not take over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Kinds of rope scaling that a GGUF names, and further values a config has for them.
_SCALINGS = {"linear": (), "yarn": ("original_context_length",)}


def completed(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config as transformers made it of a GGUF, with what is missing; `fields` are the file's values by key."""
    architecture = str(fields.get("general.architecture"))
    found = dict(config)
    kind = str(fields.get(f"{architecture}.rope.scaling.type", "none"))
    if kind in _SCALINGS:
        found["rope_parameters"] = _scaled(config.get("rope_parameters") or {}, _scaling(kind, architecture, fields))
    return found


def _scaling(kind: str, architecture: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    at = f"{architecture}.rope.scaling."
    found: dict[str, Any] = {"rope_type": kind, "factor": float(fields[f"{at}factor"])}
    if f"{at}original_context_length" in fields and _SCALINGS[kind]:
        found["original_max_position_embeddings"] = int(fields[f"{at}original_context_length"])
    return found


def _scaled(rope: Mapping[str, Any], scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings with a scaling; where kinds of layers have their own, those that see everything get it."""
    if "full_attention" in rope:
        return {**rope, "full_attention": {**rope["full_attention"], **scaling}}
    return {**rope, **scaling}
