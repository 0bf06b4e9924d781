"""`surgeon.greedy_soup`: the average of those fine-tunes that do not lower a measured score."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.verbs.apply import apply

if TYPE_CHECKING:
    from surgeon.space.expr import Expr
    from surgeon.tuning.soup import Soup


def greedy_soup(
    models: Sequence[Expr], score: Callable[[Path], float], *, folder: str | Path | None = None, **asked: Any
) -> Soup:
    """Average fine-tunes of one task: from the best down, each stays if the score of the average does not fall.

    `score` is given the folder of a written checkpoint and returns a number, the larger the better; it is asked for
    2N − 1 checkpoints, which stand one at a time in a temporary folder (inside `folder`, where one is given). Further
    arguments are those of `apply`. The result's `expr` is a plain `linear` merge: `surgeon.apply(soup.expr, out)`, or
    `surgeon.dump_recipe(soup.expr)`. RefusedError for no models, the same one twice, or a score that is no number.
    """
    from surgeon.errors import RefusedError
    from surgeon.tuning import soup

    if not models or len(set(models)) < len(models):
        raise RefusedError("a soup takes one model or more, each once", hint="list every fine-tune once")

    def scored(expr: Expr) -> float:
        with tempfile.TemporaryDirectory(dir=folder, prefix="soup-") as place:
            apply(expr, Path(place) / "model", **asked)
            found = float(score(Path(place) / "model"))
        if math.isnan(found):
            raise RefusedError(f"the score of {expr} is not a number", hint="return a number, the larger the better")
        return found

    return soup.greedy_soup(models, scored)
