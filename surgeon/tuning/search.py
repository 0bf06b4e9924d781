"""Numbers searched with optuna, each trial a whole plan evaluated into the loaded model; a journal keeps every one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import RefusedError, RunError, SurgeonError
from surgeon.recipe.search import Searched, Value

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Note = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Judged:
    """What a choice of numbers is worth, and what was measured for it."""

    score: float
    measured: Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """A choice of numbers, by place in the recipe, and what it is worth; None where it could not be built, and why."""

    values: Mapping[str, Value]
    score: float | None
    measured: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        about = {"fault": self.fault} if self.fault else dict(self.measured)
        return {"values": dict(self.values), "score": self.score, **about}


def require_optuna() -> None:
    """RefusedError where it is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        hint = "pip install 'model-surgeon[tune]'"
        raise RefusedError("searching numbers needs optuna, which is not installed", hint=hint) from None


def search(
    open_numbers: Sequence[Searched], judge: Callable[[Mapping[str, str]], Judged], *, trials: int, seed: int,
    journal: Path, identity: str, note: Note,
) -> list[Trial]:  # fmt: skip
    """All trials, those of an earlier run with the same journal included; `judge` takes values as `--set` does.

    The choice of each trial rests on the seed and the trials before it alone, so that a search that was interrupted
    ends as one that was not. RefusedError for a journal of another search (`identity`).
    """
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    study = _study(journal, identity)
    spaces = {one.path: _space(one) for one in open_numbers}
    while len(done := study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL))) < trials:
        study.sampler = TPESampler(seed=seed * 1_000_003 + len(done))
        asked = study.ask(spaces)
        values = {one.path: _rounded(asked.params[one.path]) for one in open_numbers}
        try:
            judged = judge({one.path: one.spelled(values[one.path]) for one in open_numbers})
        except RunError:
            raise
        except SurgeonError as error:
            asked.set_user_attr("fault", error.message)
            study.tell(asked, state=TrialState.FAIL)
        else:
            asked.set_user_attr("measured", dict(judged.measured))
            study.tell(asked, judged.score)
        note("trials", len(done) + 1, trials)
    return [_trial(one) for one in done]


def best(trials: Sequence[Trial]) -> Trial:
    """The best trial, the first of equals. RefusedError where none could be built."""
    built = [(trial.score, -number) for number, trial in enumerate(trials) if trial.score is not None]
    if not built:
        raise RefusedError(f"none of {len(trials)} trials could be built: {trials[0].fault}" if trials else "no trials")
    return trials[-max(built)[1]]


def _study(journal: Path, identity: str) -> Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(storage=storage, study_name="tune", direction="maximize", load_if_exists=True)
    if study.user_attrs.setdefault("identity", identity) != identity:
        hint = "tune into another folder, or without --resume"
        raise RefusedError(f"{journal} is of another search: recipe, prompts or settings differ", hint=hint)
    study.set_user_attr("identity", identity)
    return study


def _space(one: Searched) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    low, high = one.values[0], one.values[-1]
    return CategoricalDistribution(one.values) if one.choices else FloatDistribution(float(low), float(high))


def _rounded(value: Value) -> Value:
    """Four digits are more than a trial can tell apart, and can be read."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _trial(found: FrozenTrial) -> Trial:
    values = {name: _rounded(value) for name, value in found.params.items()}
    fault = str(found.user_attrs.get("fault", ""))
    return Trial(values, None if fault else found.value, found.user_attrs.get("measured", {}), fault)
