"""The progress bar: events of a running verb, drawn on stderr once it has taken a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import Task, TaskID

    from surgeon import Progress

PATIENCE = 1.0


@contextmanager
def drawn(*, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Give what takes the events, or None where nobody looks: with --json, or when stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    bars, started = _bars(), time.monotonic()
    stages: dict[str, TaskID] = {}

    def draw(event: Progress) -> None:
        if time.monotonic() - started < PATIENCE:
            return
        bars.start()
        if event.stage not in stages:
            stages[event.stage] = bars.add_task(event.stage, unit=event.unit, detail="")
        bars.update(stages[event.stage], completed=event.done, total=event.total, detail=event.detail)

    try:
        yield draw
    finally:
        if stages:
            bars.stop()


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        """What is counted, a second."""

        def render(self, task: Task) -> Text:
            """Show the rate."""
            return Text(_rate(task.finished_speed or task.speed, task.fields["unit"]))

    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), Rate(), TimeRemainingColumn()
    column = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    detail = TextColumn("{task.fields[detail]}", markup=False, table_column=column)
    # Bound to today's stderr: a verb may silence what a library writes there meanwhile.
    console = Console(file=sys.stderr)
    return Progress(*columns, detail, console=console, redirect_stdout=False, redirect_stderr=False)


def _rate(speed: float | None, unit: str) -> str:
    from rich.filesize import pick_unit_and_suffix

    if speed is None:
        return ""
    size, prefix = pick_unit_and_suffix(int(speed), ["", "k ", "M ", "G "], 1000)
    return f"{speed / size:.1f} {prefix.strip() + 'B' if unit == 'bytes' else prefix + unit}/s"
