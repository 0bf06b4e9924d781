"""What data-using methods are given: a function each, of the bench and the experts, to settings and seconds."""

from collections.abc import Callable, Mapping
from typing import Any

DATA: Mapping[str, Callable[..., tuple[dict[str, Any], float]]] = {}
