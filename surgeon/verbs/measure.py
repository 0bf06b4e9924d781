"""`surgeon measure`: what an edit did to a model that runs; and edits of a model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgeon.artifacts.direction import Direction
    from surgeon.measuring.residual import Residual
    from surgeon.runtime.load import Loaded
    from surgeon.space.expr import Expr


@dataclass(frozen=True)
class ResidualReport:
    """What is left of a direction at every residual point."""

    points: tuple[Residual, ...]

    @property
    def worst(self) -> float:
        """The largest ratio."""
        return max((one.ratio for one in self.points), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"worst": self.worst, "points": [one.to_dict() for one in self.points]}

    def summary(self) -> str:
        """A table for the terminal, and the worst point."""
        lines = [f"  {one.point:<14} {one.ratio:.2e}" for one in self.points]
        return "\n".join(["max|Rᵀh| / max|h| over all tokens:", *lines, f"worst: {self.worst:.2e}"])


def measure_residual(
    model: str | Path,
    direction: str | Path | Direction,
    *,
    prompts: str | Path | None = None,
    at: str = "",
    dtype: str = "float32",
    device: str = "auto",
) -> ResidualReport:
    """Run a model and measure max|Rᵀh| / max|h| of a direction at every residual point.

    `prompts` is a file of examples; without one the neutral set that comes with surgeon is used. `at` names the point
    whose direction is meant (``own``: each point its own).
    """
    from surgeon.artifacts.direction import Direction
    from surgeon.directions.examples import neutral_examples, read_examples
    from surgeon.errors import MismatchError
    from surgeon.measuring.residual import residual
    from surgeon.runtime.load import load
    from surgeon.store.source import locate

    held = direction if isinstance(direction, Direction) else Direction.load(Path(direction).expanduser())
    held.check(str(direction) if not isinstance(direction, Direction) else "the direction")
    root, _ = locate(str(model), probe=True)
    loaded = load(root, dtype=dtype, device=device)
    if held.width != loaded.anatomy.width:
        raise MismatchError(f"the direction is {held.width} wide and the stream {loaded.anatomy.width}")
    examples = (
        neutral_examples(loaded.has_chats) if prompts is None else read_examples(Path(prompts).expanduser(), mixed=True)
    )
    return ResidualReport(residual(loaded, held, examples, at))


def apply_to(loaded: Loaded, expr: Expr) -> Mapping[str, Any]:
    """Evaluate an expression into a loaded model's parameters: the numbers the written file would hold, in float32.

    Returns what changes in the config. The model stays edited.
    """
    from surgeon.engine.run import run
    from surgeon.measuring.trial import changes_only
    from surgeon.planning.plan import build
    from surgeon.runtime.module_sink import ModuleSink
    from surgeon.space.output import Output, Recipe

    plan = changes_only(build(Recipe(expr, Output(dtype="F32", dequantize=True))), loaded)
    run(plan, ModuleSink(loaded, {target.name: target.spec for target in plan.targets}))
    return plan.config
