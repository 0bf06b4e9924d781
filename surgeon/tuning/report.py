"""An investigation from contrast sets to a choice, and the folder it is written into."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from surgeon.artifacts.direction import Direction
from surgeon.directions.contrast import Contrast
from surgeon.directions.examples import Example, neutral_examples, read_examples
from surgeon.directions.fit import held_out, measurement
from surgeon.directions.separation import Separation, drift
from surgeon.measuring import effects
from surgeon.measuring.manner import Manner, by_answers, by_rule
from surgeon.measuring.page import write_report
from surgeon.measuring.plots import require_matplotlib
from surgeon.measuring.trial import edited
from surgeon.runtime.load import load
from surgeon.space.api import open as open_model
from surgeon.store.checkpoint import open_checkpoint
from surgeon.store.files import disk_errors
from surgeon.store.fingerprint import fingerprint
from surgeon.store.source import locate
from surgeon.tuning.find import ANSWER, Bench, Note, choose_scope, dose, rank
from surgeon.tuning.scope import Tried

#: Answers of each set that teach what the manner is; neutral examples the search looks at, and how many tokens of
#: each; prompts of the dose curve; answers on the page.
TAUGHT, SEARCHED, SHORT, DOSED, SHOWN = 32, 12, 32, 12, 8
DOSES = (-4.0, -2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0)
#: An edit that costs more than this many nats a token on neutral text meets the attention sink or an outlier.
COSTLY = 1.0


def investigate(
    model: str, train: Contrast, held: Contrast, *, fit: str, position: str, neutral: Path | None, shows: str | None,
    budget: float, name: str, device: str, dtype: str, settings: Mapping[str, Any], note: Note,
) -> tuple[dict[str, Any], Direction]:  # fmt: skip
    """Everything `find` does but writing: the report's content and the direction."""
    clock = _Clock()
    require_matplotlib()
    root, _ = locate(model, probe=True)
    loaded = load(root, dtype=dtype, device=device)
    mark = fingerprint(open_checkpoint(root, model))
    around = read_examples(neutral, mixed=True) if neutral is not None else neutral_examples(loaded.has_chats)
    clock.lap("loading")
    said = [effects.answers(loaded, side[:TAUGHT], ANSWER) for side in (train.positive, train.negative)]
    manner = by_answers(*said) if shows is None else by_rule(shows)
    note("answers of the model as it is", 1, 1)
    clock.lap("answers")
    about = {"name": name, "model": mark, "model_ref": model}
    measured = measurement(
        loaded, fit, train, neutral=around, position=position, settings=settings, listener=partial(note, "states")
    )
    direction = measured.direction(**about)
    clock.lap("statistics")
    apart = [_row(one) for one in held_out(loaded, measured, direction, held)]
    clock.lap("separation")
    bench = Bench(
        loaded, open_model(root), direction, manner, train.positive[:TAUGHT], said[0],
        effects.neutral(loaded, around[:: max(len(around) // SEARCHED, 1)], SHORT), note,
    )  # fmt: skip
    ranked = rank(bench)
    clock.lap("writers")
    chosen, tried = choose_scope(bench, ranked, budget)
    clock.lap("scopes")
    report: dict[str, Any] = {
        "name": name,
        "model": {"ref": str(root.resolve()) if Path(model).expanduser().exists() else model, "fingerprint": mark},
        "counts": _counts(train, held, around),
        "separation": apart,
        "drift": {"points": list(direction.tensors), "cosine": drift(direction).tolist()},
        "guard": {"sink": True, **direction.about["guard"]} if "guard" in direction.about else None,
        "effects": [{"block": one.block, "part": one.part.value, "nats": one.nats} for one in ranked],
        "tried": [one.to_dict() for one in tried],
        "chosen": chosen.to_dict() | {"why": _why(chosen, tried, budget)},
    }
    report |= _confirmed(bench, chosen, held, effects.neutral(loaded, around))
    clock.lap("confirmation")
    doses = sorted({*DOSES, chosen.strength, -chosen.strength})
    report["dose"] = dose(bench, chosen.scope, doses, held.positive[:DOSED], held.negative[:DOSED])
    clock.lap("dose")
    report["rates"]["strengthened"] = _strengthened(bench, chosen, report["dose"], held.negative)
    report["warnings"] = _warnings(report, manner, budget)
    report["seconds"] = clock.laps
    return report, direction


def _row(one: Separation) -> dict[str, Any]:
    """A point's separation for the report, with the best of each control."""
    controls = {"shuffled": max(one.shuffled, default=0.5), "random": max(one.random, default=0.5)}
    return {"point": one.point, "auroc": one.auroc, **controls}


class _Clock:
    """How long each part took."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, part: str) -> None:
        """Note that a part has ended."""
        now = time.monotonic()
        self.laps[part], self._last = round(now - self._last, 2), now


def _counts(train: Contrast, held: Contrast, around: Sequence[Example]) -> dict[str, int]:
    return {
        "positive": len(train.positive), "negative": len(train.negative), "held_out_positive": len(held.positive),
        "held_out_negative": len(held.negative), "neutral": len(around),
    }  # fmt: skip


def _confirmed(bench: Bench, chosen: Tried, held: Contrast, around: effects.Neutral) -> dict[str, Any]:
    """Rates before and after on held-out prompts, the cost on all neutral examples, and answers to look at."""
    loaded, manner = bench.loaded, bench.manner
    before = effects.answers(loaded, held.positive, ANSWER)
    without = effects.answers(loaded, held.negative, ANSWER)
    after = bench.said(chosen.scope, chosen.strength, held.positive)
    with edited(loaded, chosen.scope.edit(bench.of, bench.direction, chosen.strength)):
        cost = around.cost(loaded)
    shown = zip(held.positive[:SHOWN], before, after, strict=False)
    return {
        "manner": {
            "how": f"rule: {manner.rule}" if manner.rule else "the model's own answers",
            "tells_apart": (manner.rate(before).value + 1 - manner.rate(without).value) / 2,
        },
        "rates": {
            "before": manner.rate(before).to_dict(), "after": manner.rate(after).to_dict(),
            "absent": manner.rate(without).to_dict(),
        },
        "kl": {"chats_and_text": cost},
        "answers": [{"prompt": e.asked, "before": b.text, "after": a.text} for e, b, a in shown],
    }  # fmt: skip


def _why(chosen: Tried, tried: Sequence[Tried], budget: float) -> str:
    counted = sum(one.rate is not None for one in tried)
    rate = 0.0 if chosen.rate is None else chosen.rate
    reflection = " Strength 2 reflects what is written along the direction; it does not remove it." * (
        chosen.strength == 2.0
    )
    return (
        f"Of {len(tried)} scopes and strengths tried ({counted} judged by what the model then says), it leaves the "
        f"manner in {rate:.0%} of the training prompts at the least cost: {chosen.kl:.4f} nats a token, of {budget:g} "
        "allowed." + reflection
    )


def _strengthened(
    bench: Bench, chosen: Tried, rows: Sequence[Mapping[str, Any]], prompts: Sequence[Example]
) -> dict[str, Any] | None:
    """The negative strength at which the manner shows most where it was absent; None where none raises it."""
    absent = next((row["rate_negative"] for row in rows if row["strength"] == 0), None) or 0.0
    raised = [row for row in rows if row["strength"] < 0 and row["rate_negative"] > absent]
    best = max(raised, key=lambda row: row["rate_negative"], default=None)
    if best is None:
        return None
    rate = bench.manner.rate(bench.said(chosen.scope, best["strength"], prompts))
    return rate.to_dict() | {"strength": best["strength"], "kl": best["kl"]}


def _warnings(report: Mapping[str, Any], manner: Manner, budget: float) -> list[str]:
    found = []
    if report["chosen"]["kl"] > budget:
        found.append(f"nothing within the budget of {budget:g} nats a token took the manner away; this costs more")
    apart, rates = report["manner"]["tells_apart"], report["rates"]
    if apart < 0.75:
        found.append(
            f"the model's answers to the two sets are told apart in {apart:.0%} only: it may not have this manner; "
            "look at its answers, or give a rule (--shows)"
        )
    if report["kl"]["chats_and_text"] > COSTLY:
        share = report["guard"] and max(report["guard"]["removed"].values(), default=0.0)
        found.append(
            f"the edit costs {report['kl']['chats_and_text']:.2f} nats a token on neutral text: the direction meets the"
            f" attention sink or an outlier coordinate (the guard removed up to {share or 0:.0%} of it)"
        )
    if rates["after"]["rate"] > 0.5 * rates["before"]["rate"]:
        found.append("the manner is not removed: it is spread over more than linear edits of the writers reach")
    if not report["rates"].get("strengthened"):
        found.append(
            "no negative strength raised the manner on prompts without it: it enlarges what the edited tensors already "
            "write along the direction, and there they write (almost) none; what starts the manner lies elsewhere"
        )
    return found


def write_found(report: Mapping[str, Any], direction: Direction, folder: Path) -> None:
    """direction.safetensors, recipe.yaml, report.json, report.html and its plots; all of them or none.

    What else a folder holds that is there already stays.
    """
    partial = folder.parent / f".{folder.name}.found"
    with disk_errors("writing what was found", folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            direction.save(partial / "direction.safetensors")
            (partial / "recipe.yaml").write_text(recipe_text(report), encoding="utf-8")
            text = json.dumps(report, indent=1, ensure_ascii=False)
            (partial / "report.json").write_text(text + "\n", encoding="utf-8", errors="replace")
            write_report(report, partial)
            _take_place(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _take_place(partial: Path, folder: Path) -> None:
    """Rename a finished folder to what it is called; into one that stands, file by file."""
    if not folder.exists() or not any(folder.iterdir()):
        partial.rename(folder)
        return
    for file in filter(Path.is_file, partial.rglob("*")):
        place = folder / file.relative_to(partial)
        place.parent.mkdir(exist_ok=True)
        file.replace(place)


def _other_sign(rates: Mapping[str, Any]) -> str:
    """What a negative strength was seen to do."""
    raised = rates.get("strengthened")
    if not raised:
        return "No negative strength strengthened it."
    return f"Strength {raised['strength']:g} raises it to {raised['rate']:.2f} where it was absent."


def recipe_text(report: Mapping[str, Any]) -> str:
    """The recipe that applies what was chosen."""
    chosen, rates = report["chosen"], report["rates"]
    name = re.sub(r"\W", "_", report["name"]) or "direction"
    name = f"d_{name}" if name[0].isdigit() or name in ("base", "edited") else name
    scope = f"    layers: {chosen['layers']}\n" if chosen["layers"] else ""
    scope += f"    writers: [{', '.join(chosen['writers'])}]\n" if chosen["writers"] != "all" else ""
    return (
        f"# {chosen['words']}.\n"
        f"# On {rates['before']['n']} held-out prompts the manner shows {rates['before']['rate']:.2f} of the time\n"
        f"# before and {rates['after']['rate']:.2f} after, at {report['kl']['chats_and_text']:.4f} nats a token on\n"
        f"# neutral chats and text. {_other_sign(rates)}\n"
        "surgeon: 1\n"
        f"models:\n  base: {json.dumps(str(report['model']['ref']))}\n"
        f"directions:\n  {name}: {{file: ./direction.safetensors, at: {chosen['at']}}}\n"
        "steps:\n  edited:\n    edit: ablate\n    of: base\n"
        f"    directions: [{name}]\n    strength: {chosen['strength']:g}\n{scope}"
    )
