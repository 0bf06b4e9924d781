"""mergekit's filters, texts that a tensor's name contains, as patterns over the names of a native step's tensors."""

from __future__ import annotations

import re

from surgeon.anatomy.stacks import STACKS
from surgeon.space.select import containing

_LAYER = re.compile(r"(?P<before>.*?\D)(?P<number>\d+)(?P<after>(?:\..*)?)")


def targets(text: str, layers: range | None) -> str | None:
    """The pattern for a filter; None where it fits no tensor.

    `layers` are the numbers that mergekit counts the layers of a slice by; the native step counts them from 0.
    """
    found = _LAYER.fullmatch(text) if layers is not None else None
    if found is None or layers is None or not _ends_a_prefix(found["before"]):
        return containing(text)
    meant = [str(new) for new, number in enumerate(layers) if _fits(found, str(number))]
    if not meant:
        return None
    return rf"re:{re.escape(found['before'])}({'|'.join(meant)})\.{re.escape(found['after'][1:])}"


def _ends_a_prefix(text: str) -> bool:
    return any(stack.prefix.endswith(text) or text.endswith(stack.prefix) for stack in STACKS)


def _fits(found: re.Match[str], number: str) -> bool:
    """Whether the filter is contained in names of this layer: a number at its end may be the start of a longer one."""
    return number == found["number"] if found["after"] else number.startswith(found["number"])
