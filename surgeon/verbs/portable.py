"""Config and tokenizer files in the spelling that every server and both generations of transformers read.

transformers 5 writes `rope_parameters`, which transformers 4 ignores (it then runs with the wrong rope_theta, without a
word), and `TokenizersBackend`, which it does not know. What is written here says the same in the older spelling, which
version 5 reads as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: Keys of the config that are about how it was loaded.
_LOADING = ("quantization_config", "_name_or_path", "_model_name_or_path", "rope_parameters")

#: Keys of the tokenizer's config that are about how it was loaded.
_TOKENIZER_LOADING = ("backend", "is_local", "local_files_only", "name_or_path", "vocab_file", "gguf_file")


def portable_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A model's config with rope settings at the top, and the dtype under both names."""
    kept = {key: value for key, value in config.items() if key not in _LOADING}
    return kept | _rope(config.get("rope_parameters")) | {"dtype": dtype, "torch_dtype": dtype}


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


def _rope(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and the like from `rope_parameters`, also where it has one entry a kind of layer."""
    if not parameters:
        return {}
    if "full_attention" not in parameters:
        return _flat_rope(parameters)
    local = parameters.get("sliding_attention") or {}
    if set(local) - {"rope_type", "rope_theta"} or local.get("rope_type", "default") != "default":
        # No older spelling says this.
        return {"rope_parameters": dict(parameters)}
    frequency = {"rope_local_base_freq": local["rope_theta"]} if "rope_theta" in local else {}
    return _flat_rope(parameters["full_attention"]) | frequency


def _flat_rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    top = {key: parameters[key] for key in ("rope_theta", "partial_rotary_factor") if key in parameters}
    scaling = {key: value for key, value in parameters.items() if key not in top}
    return top | ({"rope_scaling": scaling} if scaling.get("rope_type", "default") != "default" else {})
