"""What goes to stdout: a report as text, or as JSON."""

import json
import sys
from collections.abc import Mapping
from io import TextIOWrapper
from typing import Any, Protocol


class Report(Protocol):
    """What the verbs that report give back."""

    def explain(self) -> str:
        """The report as text."""
        ...

    def to_dict(self) -> Mapping[str, Any]:
        """The report as data."""
        ...


class Result(Protocol):
    """What the verbs that write or measure give back."""

    def summary(self) -> str:
        """What came out, in a few lines."""
        ...

    def to_dict(self) -> Mapping[str, Any]:
        """The same as data."""
        ...


def show(report: Report, *, as_json: bool) -> None:
    """Print a report on stdout."""
    print(to_json(report.to_dict()) if as_json else report.explain())


def summarise(result: Result, *, as_json: bool) -> None:
    """Print what a verb that writes or measures gave."""
    print(to_json(result.to_dict()) if as_json else result.summary())


def to_json(data: Mapping[str, Any]) -> str:
    """Indented JSON in ASCII."""
    return json.dumps(data, indent=2)


def fit_streams() -> None:
    """Let stdout and stderr write ? for what their encoding lacks, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
