"""Recipes applied to a model in memory: loaded, spread and offloaded by accelerate, or wrapped by PEFT."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from surgeon.verbs.plan import plan

if TYPE_CHECKING:
    from surgeon.engine.events import Listener
    from surgeon.planning.plan import Plan
    from surgeon.runtime.module_sink import ModuleSink
    from surgeon.space.expr import Expr
    from surgeon.space.output import Recipe


@dataclass(eq=False)
class Applied:
    """A model as a recipe makes it. `restore()`, or leaving it as a context, gives the model its former bits back.

    `config` holds the keys of config.json that the recipe changes, `notes` what is to be known of dtypes and files.
    What was replaced is kept as long as this object lives.
    """

    model: Any
    config: Mapping[str, Any]
    notes: tuple[str, ...]
    _sink: ModuleSink = field(repr=False)

    def restore(self) -> None:
        """Put back what was replaced; a second call does nothing."""
        self._sink.restore()

    def __enter__(self) -> Applied:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def apply_to(
    model: Any,
    what: Expr | Recipe | str | Path,
    *,
    dtype: str | None = None,
    device: str = "auto",
    memory: int | str | None = None,
    threads: int | None = None,
    any_model: bool = False,
    overrides: Mapping[str, str] | None = None,
    on_event: Listener | None = None,
) -> Applied:
    """Put what a recipe (a file, a `Recipe` or an expression) gives into a loaded transformers model, in place.

    The parameters then hold what loading the written file in the model's dtype would give: rounded to the output's
    dtype (`dtype`, or the recipe's) and cast. Tensors that the model holds already are left alone. Parameters that
    accelerate offloads are changed where it keeps them (never in the checkpoint's own files), those under PEFT's
    wrappers inside them, adapters as they are. As a context manager it takes everything back on the way out; without,
    the model stays edited. MismatchError where the recipe gives another table of tensors or another config.
    """
    from surgeon.engine.run import run
    from surgeon.measuring.in_memory import fitted_to
    from surgeon.runtime.held import Live
    from surgeon.runtime.load import Loaded
    from surgeon.runtime.module_sink import ModuleSink

    asked: dict[str, Any] = {
        "dtype": dtype, "device": device, "memory": memory, "threads": threads, "any_model": any_model,
    }  # fmt: skip
    with _measured(plan(what, overrides=overrides, **asked), asked, on_event) as planned:
        live = Live(model.model if isinstance(model, Loaded) else model)
        sink = ModuleSink(live, {target.name: target.spec for target in planned.targets})
        fitted = fitted_to(planned, sink)
        try:
            run(fitted.plan, sink, listener=on_event)
        except BaseException:
            sink.restore()
            raise
    for loss in fitted.losses:
        warnings.warn(loss, stacklevel=2)
    return Applied(model, planned.config, (*fitted.losses, *fitted.notes, *planned.warnings), sink)


@contextmanager
def _measured(planned: Plan, asked: Mapping[str, Any], listener: Listener | None) -> Iterator[Plan]:
    """The plan once everything is measured that its recipe measures; the files of it lie in a temporary folder."""
    if not planned.fits:
        yield planned
        return
    from surgeon.verbs.stages import stages

    with (
        tempfile.TemporaryDirectory(prefix="surgeon-") as folder,
        stages(planned, Path(folder) / "out", listener, overwrite=False, resume=None) as (recipe, _),
    ):
        yield plan(recipe, **asked)
