"""A config as its own class reads it: defaults filled in, renamed keys in their place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def as_class_reads(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config with defaults and moved keys resolved by transformers' class of its type; None where that fails.

    The class is one that transformers itself has; code that comes with a model is never run.
    """
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError:
        return None
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    try:
        read = CONFIG_MAPPING[kind].from_dict(json.loads(json.dumps(config))).to_dict()
    except Exception:
        # Its validators raise errors of many kinds; a config they refuse is compared as it is written.
        return None
    return json.loads(json.dumps(read, default=str))
