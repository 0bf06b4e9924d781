"""Config and tokenizer files in the spelling that every server and both generations of transformers read.

transformers 5 writes `rope_parameters`, which transformers 4 ignores (it then runs with the wrong rope_theta, without a
word), and `TokenizersBackend`, which it does not know. What is written here says the same in the older spelling, which
version 5 reads as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: Keys that are about how a config or a tokenizer was loaded.
_LOADING = ("quantization_config", "_name_or_path", "_model_name_or_path", "rope_parameters")
_TOKENIZER_LOADING = ("backend", "is_local", "local_files_only", "name_or_path", "vocab_file", "gguf_file")


def portable_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A model's config with rope settings at the top, and the dtype under both names."""
    kept = {key: value for key, value in config.items() if key not in _LOADING}
    return kept | _rope(config.get("rope_parameters") or {}) | {"dtype": dtype, "torch_dtype": dtype}


def portable_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's config; the class is the one that does what tokenizer.json says and no more."""
    kept = {key: value for key, value in config.items() if key not in _TOKENIZER_LOADING}
    return kept | {"tokenizer_class": "PreTrainedTokenizerFast"}


def portable_generation(config: Mapping[str, Any]) -> dict[str, Any]:
    """A generation config without the mark that it was derived, at which servers ignore it."""
    return {key: value for key, value in config.items() if key != "_from_model_config" and value is not None}


def json_text(data: Mapping[str, Any]) -> bytes:
    """JSON as transformers writes it: indented, sorted."""
    return (json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and the like from `rope_parameters`, also where it has one entry a kind of layer."""
    if "full_attention" in rope:
        local = rope.get("sliding_attention") or {}
        if not local.items() <= {"rope_type": "default", "rope_theta": local.get("rope_theta")}.items():
            return {"rope_parameters": dict(rope)}  # no older spelling says this
        frequency = {"rope_local_base_freq": local["rope_theta"]} if "rope_theta" in local else {}
        return _rope(rope["full_attention"]) | frequency
    top = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    scaling = {key: value for key, value in rope.items() if key not in top}
    return top | ({"rope_scaling": scaling} if scaling.get("rope_type", "default") != "default" else {})
