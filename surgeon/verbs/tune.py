"""`surgeon tune`: a recipe and a few prompts a skill in; a plain recipe with learned or chosen numbers out."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import OutputError, RefusedError
from surgeon.verbs._table import table

if TYPE_CHECKING:
    from surgeon.engine.events import Listener
    from surgeon.space.output import Recipe
    from surgeon.tuning.settings import Tuning

_RECIPE, _REPORT, _JOURNAL = "recipe.yaml", "report.json", "trials.journal"
_NAMES = {"start": "recipe as written", "found": "numbers found"}


@dataclass(frozen=True)
class Tuned:
    """What `tune` wrote: the folder, and the content of its report.json."""

    folder: Path
    report: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report's JSON."""
        return dict(self.report)

    def summary(self) -> str:
        """What each set of coefficients buys, on held-out prompts, and what to do next."""
        skills = list(self.report["rows"][0]["agreement"])
        head = ("", *skills, "chat KL", "numbers", "seconds")
        lines = ["agreement with each expert on held-out prompts, and KL to the base on neutral ones (nats a token):"]
        lines += table([head, *(_row(row, skills) for row in self.report["rows"])])
        lines += [f"  {place} = {value}" for place, value in self.report.get("chosen", {}).get("values", {}).items()]
        lines += [f"  warning: {warning}" for warning in self.report["warnings"]]
        return "\n".join([*lines, f"  next: surgeon apply {self.folder / _RECIPE} -o out/"])


def _row(row: Mapping[str, Any], skills: list[str]) -> tuple[str, ...]:
    shares = [f"{row['agreement'][name]:.2f}" for name in skills]
    counted = [str(row[key]) if key in row else "" for key in ("numbers", "seconds")]
    return (_NAMES.get(row["name"], f"learned {row['name']}"), *shares, f"{row['chat_kl']:.4f}", *counted)


def tune(
    recipe: str | Path,
    out: str | Path,
    *,
    prompts: Mapping[str, str | Path] | None = None,
    neutral: str | Path | None = None,
    compare: bool = False,
    resume: bool = False,
    overrides: Mapping[str, str] | None = None,
    device: str = "auto",
    dtype: str = "float32",
    overwrite: bool = False,
    on_event: Listener | None = None,
    **settings: Any,
) -> Tuned:
    """Learn the coefficients of a recipe's arithmetic, or search its open numbers; write a plain recipe into OUT.

    `prompts` maps each expert's name in the recipe to a file of JSON lines, about 100 prompts (answers optional: else
    what the expert itself says is learned); a quarter is held out. Learning starts at the recipe's weights: from about
    0.5 it ends nearer to the base than from 1. `neutral` are chats and texts on which the result is
    kept at the base. Where a number is written ``{search: [LOW, HIGH]}``, numbers are searched, and `resume` goes on
    with the trials in OUT; else coefficients are learned: `per` model, layer, tensor or row, `steps`, `rate`, `guard`,
    `batch`. Further `settings`: `trials`, `budget`, `score`, `tokens`, `seed`. All may stand under ``tune:`` in the
    recipe. `compare` learns every kind of coefficients and tells what each buys. RefusedError for experts without
    prompts, prompts that overlap, one expert, or a result that is no plain arithmetic.
    """
    from surgeon.recipe import searched

    folder, file = Path(out).expanduser(), Path(recipe)
    given = {"prompts": prompts, "neutral": neutral, **settings}
    numbers = searched(file, overrides)
    _refuse_used(folder, overwrite, resume and bool(numbers))
    if numbers and (compare or settings.get("per")):
        hint = "tune without per and compare first, then learn coefficients for the recipe it writes"
        raise RefusedError("numbers are searched or coefficients learned, one after the other", hint=hint)
    if resume and not numbers:
        raise RefusedError("there is nothing to resume: the recipe has no {search: …}", hint="leave out --resume")
    note = _noting(on_event)
    if numbers:
        return _search(file, folder, numbers, given, overrides or {}, (dtype, device), resume, note)
    return _learn(file, folder, given, overrides or {}, compare, (dtype, device), note)


def _learn(
    file: Path, folder: Path, given: Mapping[str, Any], overrides: Mapping[str, str], compare: bool,
    run: tuple[str, str], note: Callable[[str, int, int], None],
) -> Tuned:  # fmt: skip
    from surgeon.recipe import load
    from surgeon.tuning.distil import ARTIFACT, learned

    loaded = load(file, overrides)
    how = _tuning(loaded.tune, given)
    with tempfile.TemporaryDirectory() as beside:
        found = learned(loaded.recipe, how, compare, run, Path(beside), note)
    report = _finished(found.report, how, file)
    _write(folder, found.recipe, report, {ARTIFACT: found.coefficients.to_bytes()})
    return Tuned(folder, report)


def _search(
    file: Path, folder: Path, numbers: Any, given: Mapping[str, Any], overrides: Mapping[str, str],
    run: tuple[str, str], resume: bool, note: Callable[[str, int, int], None],
) -> Tuned:  # fmt: skip
    from surgeon.recipe import load
    from surgeon.store.files import disk_errors
    from surgeon.tuning.choose import choose
    from surgeon.tuning.search import require_optuna

    require_optuna()
    first = {one.path: one.spelled(one.values[0]) for one in numbers}
    how = _tuning(load(file, {**overrides, **first}).tune, given)
    journal = folder / _JOURNAL
    with disk_errors("keeping trials", folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            journal.unlink(missing_ok=True)

    def read(values: Mapping[str, str]) -> Recipe:
        return load(file, {**overrides, **values}).recipe

    found = choose(read, numbers, how, run, journal, note)
    report = _finished(found.report, how, file)
    _write(folder, read(found.values), report, {})
    return Tuned(folder, report)


def _tuning(section: Mapping[str, Any], given: Mapping[str, Any]) -> Tuning:
    """The recipe's `tune:` with what was given in its place."""
    from surgeon.errors import nearest
    from surgeon.tuning.grain import GRAINS
    from surgeon.tuning.settings import Tuning

    known = {one.name for one in fields(Tuning)}
    if unknown := next((name for name in given if name not in known), None):
        raise RefusedError(f"tune has no setting {unknown!r}", hint=nearest(unknown, known))
    asked = {**section, **{name: value for name, value in given.items() if value is not None}}
    asked["prompts"] = {name: Path(path) for name, path in (asked.get("prompts") or {}).items()}
    asked["neutral"] = Path(asked["neutral"]) if asked.get("neutral") else None
    how = Tuning(**asked)
    if how.per not in GRAINS:
        raise RefusedError(f"coefficients are per {', '.join(GRAINS)}, not {how.per!r}", hint=nearest(how.per, GRAINS))
    if how.score not in ("mean", "worst"):
        raise RefusedError(f"the score is mean or worst, not {how.score!r}")
    if min(how.steps, how.rate, how.guard, how.budget, how.seed) < 0 or min(how.batch, how.trials, how.tokens) < 1:
        raise RefusedError("steps, rate, guard, budget and seed are 0 or more; batch, trials and tokens 1 or more")
    return how


def _finished(report: Mapping[str, Any], how: Tuning, file: Path) -> dict[str, Any]:
    last = next((row for row in report["rows"] if row["name"] == f"per {how.per}"), report["rows"][-1])
    warnings = []
    if last["chat_kl"] > how.budget:
        advice = "a higher guard keeps more of it" if report["kind"] == "learned" else "widen the search, or the budget"
        warnings.append(f"chat KL {last['chat_kl']:.3f} is above the budget of {how.budget:g} nats a token; {advice}")
    return {"recipe": str(file), **report, "warnings": warnings}


def _write(folder: Path, recipe: Recipe, report: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """The artifact, report.json and, last, recipe.yaml, each complete or not there."""
    from surgeon.recipe import dump_recipe
    from surgeon.store.files import disk_errors

    rows = Tuned(folder, report).summary().splitlines()[:-1]
    head = "".join(f"# {line}".rstrip() + "\n" for line in rows)
    texts = {_REPORT: json.dumps(report, indent=1, ensure_ascii=False) + "\n"}
    texts[_RECIPE] = head + dump_recipe(recipe, schema=False)
    with disk_errors("writing what was tuned", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in {**files, **{name: text.encode() for name, text in texts.items()}}.items():
            partial = folder / f".{name}.partial"
            partial.write_bytes(data)
            shutil.move(partial, folder / name)


def _refuse_used(folder: Path, overwrite: bool, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file", hint="name a folder for what is tuned")
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if resume and _JOURNAL not in held:
        raise RefusedError(f"there is nothing to resume: {folder} has no {_JOURNAL}", hint="leave out --resume")
    if not held or resume:
        return
    if not overwrite:
        hint = "choose another folder, --overwrite, or --resume a search" if _JOURNAL in held else ""
        raise OutputError(f"{folder} exists and is not empty", hint=hint or "choose another folder, or --overwrite")
    if not held & {_REPORT, _JOURNAL}:
        raise RefusedError(f"{folder} was not written by tune, and is not overwritten", hint="choose another folder")


def _noting(listener: Listener | None) -> Callable[[str, int, int], None]:
    from surgeon.engine.events import Progress

    def note(stage: str, done: int, total: int) -> None:
        if listener is not None:
            listener(Progress(f"tune: {stage}", done, total, "steps"))

    return note
