"""How an error looks on stderr: what, where (with the recipe's line and a caret), and what to do next."""

from __future__ import annotations

import sys
from pathlib import Path

import surgeon
from surgeon import Fault, Origin, SurgeonError

INTERRUPTED = 130

#: What to do next where the error itself does not say.
NEXT: tuple[tuple[type[SurgeonError], str], ...] = (
    (surgeon.RecipeError, "correct the recipe, then look at it with `surgeon plan RECIPE`"),
    (surgeon.CheckpointError, "look at what the checkpoint holds with `surgeon show MODEL`"),
    (surgeon.MismatchError, "compare the models with `surgeon show MODEL` or `surgeon diff A B`"),
    (surgeon.BudgetError, "allow more with --memory SIZE; `surgeon plan RECIPE` shows what is needed"),
    (surgeon.OutputError, "choose another folder with -o OUT"),
    (surgeon.VerificationError, "build it again with `surgeon apply RECIPE -o OUT --overwrite`"),
    (surgeon.CannotTellError, "verify where the models it was made from can be read"),
    (SurgeonError, "mend what the message names and run the same command again"),
)


def report(error: SurgeonError) -> None:
    """Print the error, a recipe's faults all at once, and what to do next."""
    faults = error.faults if isinstance(error, surgeon.RecipeError) else [_fault(error)]
    print("\n".join(_describe(fault) for fault in faults), file=sys.stderr)
    if len(faults) > 1:
        print(f"{len(faults)} errors", file=sys.stderr)
    print(f"  next: {_next(error)}", file=sys.stderr)


def report_unexpected(error: Exception) -> None:
    """Print one line for an error nobody foresaw, and how to see where it was raised."""
    print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
    print("  next: this is a bug in surgeon; SURGEON_DEBUG=1 shows the traceback to report", file=sys.stderr)


def report_interruption(verb: str) -> None:
    """Say what Ctrl-C left behind and how to go on."""
    resumes = "it goes on where it stopped (--fresh starts over)" if verb == "apply" else "nothing was left behind"
    print(f"\ninterrupted\n  next: run the same command again; {resumes}", file=sys.stderr)


def _fault(error: SurgeonError) -> Fault:
    return Fault(error.message, error.origin)


def _describe(fault: Fault) -> str:
    where = f"{fault.origin}: " if fault.origin else ""
    hint = f" ({fault.hint})" if fault.hint else ""
    return f"error: {where}{fault.message}{hint}" + _excerpt(fault.origin)


def _excerpt(origin: Origin | None) -> str:
    """The recipe's line with a caret under the column; nothing where the file cannot be read."""
    line = _line(origin) if origin else None
    if origin is None or line is None:
        return ""
    gutter = f"  {origin.line} | "
    indent = "".join("\t" if letter == "\t" else " " for letter in line[: origin.column - 1])
    return f"\n{gutter}{line}\n{' ' * len(gutter)}{indent}^"


def _line(origin: Origin) -> str | None:
    try:
        lines = Path(origin.file).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return lines[origin.line - 1] if 1 <= origin.line <= len(lines) else None


def _next(error: SurgeonError) -> str:
    if error.hint and not isinstance(error, surgeon.RecipeError):
        return error.hint
    return next(step for kind, step in NEXT if isinstance(error, kind))
