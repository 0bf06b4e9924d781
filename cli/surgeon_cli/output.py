"""What goes to stdout: a report as text, or as JSON; in plain ASCII where the stream can hold no more."""

from __future__ import annotations

import codecs
import json
import sys
import unicodedata
from collections.abc import Mapping
from io import TextIOWrapper
from typing import Any, Protocol

PLAIN = {
    "…": "...", "→": "->", "←": "<-", "×": "x", "−": "-", "–": "-", "—": "-", "≤": "<=", "≥": ">=", "≠": "!=",
    "·": "*", "•": "*", "±": "+/-", "≈": "~", "│": "|", "├": "|", "└": "`", "─": "-", "✓": "ok", "✗": "x",
    "‘": "'", "’": "'", "“": '"', "”": '"', "Σ": "sum", "²": "^2", "∞": "inf", "Δ": "d", "∥": "||", "‖": "||",
}  # fmt: skip


class Report(Protocol):
    """What the verbs that report give back."""

    def explain(self) -> str:
        """The report as text."""
        ...

    def to_dict(self) -> Mapping[str, Any]:
        """The report as data."""
        ...


def show(report: Report, *, as_json: bool) -> None:
    """Print a report on stdout."""
    print(to_json(report.to_dict()) if as_json else report.explain())


def to_json(data: Mapping[str, Any]) -> str:
    """Indented JSON in ASCII."""
    return json.dumps(data, indent=2)


def fit_streams() -> None:
    """Let stdout and stderr spell what their encoding lacks in ASCII: ≤ as <=."""
    codecs.register_error("surgeon-plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="surgeon-plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter) or _without_accents(letter) for letter in lacking), error.end


def _without_accents(letter: str) -> str:
    return unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode() or "?"
