"""The one change a cast makes to config.json: the dtype it names. Everything else stays as it was written."""

from __future__ import annotations

import json

from surgeon.tensors import FLOATS

_KEYS = ("dtype", "torch_dtype")


def with_dtype(text: bytes, dtype: str) -> bytes | None:
    """The config with both dtype keys set to `dtype` (safetensors spelling); None when it already says so."""
    config = json.loads(text)
    spelled = FLOATS[dtype]
    if all(config.get(key) == spelled for key in _KEYS):
        return None
    for holder in (config, *(value for value in config.values() if isinstance(value, dict))):
        if holder is config or any(key in holder for key in _KEYS):
            holder |= dict.fromkeys(_KEYS, spelled)
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
