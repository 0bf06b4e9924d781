"""How an error looks on stderr: what, where (with the recipe's line and a caret), and what to do next."""

import sys
from pathlib import Path

from surgeon import Fault, Origin, RecipeError, SurgeonError

#: The exit code typer gives to Ctrl-C.
INTERRUPTED = 130

#: So much of a line is shown: a line of a contrast set may be a book.
EXCERPT = 160


def report(error: SurgeonError) -> None:
    """Print the error, a recipe's faults all at once, and what to do next."""
    several = isinstance(error, RecipeError)
    faults = error.faults if several else [Fault(error.message, error.origin)]
    for fault in faults:
        where = f"{fault.origin}: " if fault.origin else ""
        hint = f" ({fault.hint})" if fault.hint else ""
        _tell(f"error: {where}{fault.message}{hint}{_excerpt(fault.origin)}")
    if len(faults) > 1:
        _tell(f"{len(faults)} errors")
    _tell(f"  next: {error.advice if several else error.hint or error.advice}")


def report_unexpected(error: Exception) -> None:
    """Print one line for an error nobody foresaw, and how to see where it was raised."""
    _tell(f"error: {type(error).__name__}: {error}")
    _tell("  next: this is a bug in surgeon; SURGEON_DEBUG=1 shows the traceback to report")


def report_interruption(*, resumes: bool) -> None:
    """Say what Ctrl-C left behind and how to go on."""
    left = "it goes on where it stopped (--fresh starts over)" if resumes else "nothing was left behind"
    _tell(f"\ninterrupted\n  next: run the same command again; {left}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _excerpt(origin: Origin | None) -> str:
    """The recipe's line with a caret under the column; nothing where there is no such line."""
    if origin is None:
        return ""
    try:
        line = Path(origin.file).read_text(encoding="utf-8").splitlines()[origin.line - 1]
    except (OSError, ValueError, IndexError):
        return ""
    gutter = f"  {origin.line} | "
    if len(line) > EXCERPT:
        line = line[: max(EXCERPT, origin.column)] + "…"
    indent = "".join("\t" if letter == "\t" else " " for letter in line[: origin.column - 1])
    return f"\n{gutter}{line}\n{' ' * len(gutter)}{indent}^"
