"""`surgeon find`: contrast sets in; a direction, a ready recipe and a report out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import OutputError, RefusedError

if TYPE_CHECKING:
    from surgeon.directions.contrast import Contrast
    from surgeon.engine.events import Listener


@dataclass(frozen=True)
class Found:
    """What `find` wrote: the folder, and the content of its report.json."""

    folder: Path
    report: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report's JSON."""
        return dict(self.report)

    def summary(self) -> str:
        """What was found, in a few lines for the terminal."""
        chosen, rates = self.report["chosen"], self.report["rates"]
        before, after = rates["before"], rates["after"]
        lines = [
            f"found: {chosen['words']}, strength {chosen['strength']:g}",
            f"  {chosen['why']}",
            f"  on {after['n']} held-out prompts the manner shows {before['rate']:.2f} → {after['rate']:.2f}, "
            f"at {self.report['kl']['chats_and_text']:.4f} nats a token on neutral chats and text",
            *(f"  warning: {warning}" for warning in self.report["warnings"]),
            f"  next: surgeon apply {self.folder / 'recipe.yaml'} -o out/   (the page: {self.folder / 'report.html'})",
        ]
        return "\n".join(lines)


def find(
    model: str | Path,
    positive: str | Path,
    negative: str | Path,
    out: str | Path,
    *,
    held_out: tuple[str | Path, str | Path] | None = None,
    fit: str = "mean_difference",
    position: str = "last",
    neutral: str | Path | None = None,
    shows: str | None = None,
    budget: float = 0.05,
    name: str = "",
    device: str = "auto",
    dtype: str = "float32",
    overwrite: bool = False,
    on_event: Listener | None = None,
    **settings: Any,
) -> Found:
    """Measure a direction between two contrast sets, find the smallest edit that takes the manner away, write it down.

    `positive` and `negative` are files of JSON lines (a prompt, messages or a text each); a quarter of them, by
    content, is held out unless `held_out` names two files. The manner is what the model itself says on the positive
    prompts against the negative ones, or what the regular expression `shows` fits. `budget` is the highest cost, KL in
    nats a token on neutral chats and text, that a choice may have; where nothing within it works, the report says so.
    OUT gets direction.safetensors, recipe.yaml, report.json and report.html with its plots. RefusedError for contrast
    sets that are empty, equal, overlapping or one-sided.
    """
    from surgeon.directions.contrast import Contrast, split
    from surgeon.space.registry import fitter_named
    from surgeon.tuning.report import investigate, write_found

    folder = Path(out).expanduser()
    _refuse_used(folder, overwrite)
    fitter_named(fit)
    if not budget >= 0:
        raise RefusedError(f"a budget of {budget:g} nats a token makes no sense", hint="give 0 or more")
    whole = Contrast.read(Path(positive).expanduser(), Path(negative).expanduser())
    if held_out is None:
        train, held = split(whole)
    else:
        train, held = whole, Contrast.read(*(Path(file).expanduser() for file in held_out))
        _refuse_seen(train, held)
    report, direction = investigate(
        str(model),
        train,
        held,
        fit=fit,
        position=position,
        neutral=None if neutral is None else Path(neutral).expanduser(),
        shows=shows,
        budget=budget,
        name=name or folder.name,
        device=device,
        dtype=dtype,
        settings=settings,
        note=_noting(on_event),
    )
    write_found(report, direction, folder)
    return Found(folder, report)


def _refuse_seen(train: Contrast, held: Contrast) -> None:
    """Held-out examples that were trained on confirm nothing."""
    seen = {example.content for example in (*train.positive, *train.negative)}
    both = [example for example in (*held.positive, *held.negative) if example.content in seen]
    if both:
        count = f"{len(both)} held-out example{'s are' if len(both) > 1 else ' is'} among the training ones"
        raise RefusedError(f"{count}: {both[0].asked!r}", origin=both[0].origin, hint="hold out prompts of their own")


def _refuse_used(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file", hint="name a folder for what is found")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise OutputError(f"{folder} exists and is not empty", hint="choose another folder, or --overwrite")
        if not (folder / "report.json").exists():
            raise RefusedError(
                f"{folder} was not written by find, and is not overwritten", hint="choose another folder"
            )


def _noting(listener: Listener | None) -> Callable[[str, int, int], None]:
    from surgeon.engine.events import Progress

    def note(stage: str, done: int, total: int) -> None:
        if listener is not None:
            listener(Progress(f"find: {stage}", done, total, "steps"))

    return note
