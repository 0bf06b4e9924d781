"""What merge methods, edits and fitters have in common: a function, its name in recipes, its summary."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


class Registered:
    """A decorated function; `owner` is the package that brings it, "" for surgeon's own."""

    function: Callable[..., Any]
    owner: str

    @property
    def name(self) -> str:
        """The name recipes use: the function's, behind that of the package where it is not surgeon's own."""
        own = self.function.__name__
        return f"{self.owner}/{own}" if self.owner else own

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]
