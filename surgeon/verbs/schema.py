"""`schema`: the JSON Schema of a recipe."""

from __future__ import annotations

from typing import Any


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, made from what is registered; for editors and other programs."""
    from surgeon.recipe import json_schema

    return json_schema()
