"""What a config says of the vocabulary: its size, and the ids of special tokens, which follow the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ENDING = ("_token_id", "_token_index")
#: The ids that every library asks for; others are told by some architectures only.
_USUAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_SIZE = "vocab_size"


def with_vocab_size(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The config with this vocab_size, where it stands: at the top, or in the part about the text model."""
    inside = [key for key, part in config.items() if isinstance(part, Mapping) and _SIZE in part]
    if _SIZE in config or not inside:
        return {**config, _SIZE: size}
    return {**config, **{key: {**config[key], _SIZE: size} for key in inside}}


def with_special_ids(
    config: Mapping[str, Any], giver: Mapping[str, Any], ids: Mapping[str, int], new: Mapping[str, int]
) -> dict[str, Any]:
    """A config (or generation_config) whose ids are those of the model that gives the tokenizer.

    An id that only this config tells is brought from its own vocabulary to the new one, by token; null where that has
    no such token.
    """
    if ids is new:
        return dict(config)
    tokens = {row: token for token, row in ids.items()}
    changed = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            inner = giver.get(key)
            changed[key] = with_special_ids(value, inner if isinstance(inner, Mapping) else {}, ids, new)
        elif key.endswith(_ENDING):
            changed[key] = giver[key] if key in giver else _brought(value, tokens, new)
        else:
            changed[key] = value
    return changed | {key: giver[key] for key in _USUAL if key in giver}


def _brought(value: Any, tokens: Mapping[int, str], new: Mapping[str, int]) -> Any:
    if isinstance(value, list):
        found = [_brought(one, tokens, new) for one in value]
        return [one for one in found if one is not None]
    return new.get(tokens.get(value, "")) if isinstance(value, int) else value
