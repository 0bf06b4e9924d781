"""Every error a user can meet, and where in a recipe it came from.

The tree::

    SurgeonError                    exit 1
    ├── RefusedError                exit 2   whatever `plan` can see before a tensor is read
    │   ├── RecipeError             a recipe's faults, all at once, each with file:line
    │   ├── CheckpointError         a checkpoint or adapter that is not what it claims to be
    │   ├── MismatchError           names, shapes, dtypes or masses that do not fit together
    │   ├── BudgetError             work that does not fit the memory allowed
    │   └── OutputError             an output folder that may not be written
    ├── RunError                    exit 1   failures while running: a full disk, a NaN in an input
    └── VerificationError           exit 3   files that are not what the receipt or recipe says
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """A place in a recipe: its file, line and (from 1) column."""

    file: str
    line: int
    column: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class SurgeonError(Exception):
    """Base of all errors raised on purpose: what happened, where, and what to do next.

    `advice` is what to do where an error's own `hint` does not say.
    """

    exit_code = 1
    advice = "mend what the message names and run the same command again"

    def __init__(self, message: str, *, origin: Origin | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.origin = origin
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.origin}: " if self.origin else ""
        return f"{where}{self.message}" + (f"\n  next: {self.hint}" if self.hint else "")


class RefusedError(SurgeonError):
    """Refused before any tensor was read."""

    exit_code = 2


@dataclass(frozen=True)
class Fault:
    """One fault of a recipe."""

    message: str
    origin: Origin | None = None
    hint: str = ""

    def __str__(self) -> str:
        return str(SurgeonError(self.message, origin=self.origin, hint=self.hint))


class RecipeError(RefusedError):
    """All faults of one recipe."""

    advice = "correct the recipe, then look at it with `surgeon plan RECIPE`"

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        first = self.faults[0]
        super().__init__(first.message, origin=first.origin, hint=first.hint)

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


class CheckpointError(RefusedError):
    """A checkpoint, index or adapter on disk is broken, unsafe or of a kind that is not read."""

    advice = "look at what the checkpoint holds with `surgeon show MODEL`"


class MismatchError(RefusedError):
    """Inputs that do not fit together: tensor sets, shapes, dtypes or masses."""

    advice = "compare the models with `surgeon show MODEL` or `surgeon diff A B`"


class BudgetError(RefusedError):
    """The work does not fit the memory allowed."""

    advice = "allow more with --memory SIZE; `surgeon plan RECIPE` shows what is needed"


class OutputError(RefusedError):
    """The output folder exists, is in use, or lies inside an input."""

    advice = "choose another folder with -o OUT"


class RunError(SurgeonError):
    """A failure while running; the build can be resumed or was cleaned away."""


class VerificationError(SurgeonError):
    """Files differ from what the receipt or the recipe says."""

    exit_code = 3
    advice = "build it again with `surgeon apply RECIPE -o OUT --overwrite`"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word closest to `word`, or listing a few known ones."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(names[:12]) + (" …" if len(names) > 12 else "") if names else ""
