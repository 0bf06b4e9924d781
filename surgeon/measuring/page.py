"""The page of a direction's report: one HTML file that needs nothing else, for a phone and a desktop, light and dark.

Prompts and answers are whatever people and models wrote: every text is escaped, and the page allows no script.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from surgeon.measuring import plots

Report = Mapping[str, Any]

#: Answers shown at once; the rest unfold.
_OPEN = 6
#: What makes two trials the same.
_SCOPE = ("words", "layers", "writers", "at", "strength")

_PLOTS = {
    "separation": (
        "Separation by layer",
        "How well the direction tells held-out positive prompts from negative ones at each point of the residual "
        "stream: 1 is always, 0.5 is chance. Where a control rises with it, it shows little; nor does it say where to "
        "edit.",
    ),
    "drift": (
        "Drift between layers",
        "The cosine between the directions of two points: dark red is the same direction, white an unrelated one. Pale "
        "off the diagonal means that one layer's direction is not another's.",
    ),
    "effects": (
        "Effect by writer",
        "Each bar is one tensor edited alone, and how much of the manner's log-probability that takes away: tall bars "
        "write the manner, a bar below 0 holds it back.",
    ),
    "dose": (
        "Dose and response",
        "From left to right, the manner should fall as the strength grows while the cost stays near 0; below 0, which "
        "strengthens, it should rise. The dotted line is the strength chosen; the cost's scale is logarithmic.",
    ),
}


def write_report(report: Report, folder: Path) -> None:
    """Write report.html and plots/*.png into a folder; RefusedError without matplotlib."""
    light, dark = plots.draw(report), plots.draw(report, dark=True)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for name, png in light.items():
        (folder / "plots" / f"{name}.png").write_bytes(png)
    # A model may say half a character; what no file can hold is replaced.
    (folder / "report.html").write_text(page(report, light, dark), encoding="utf-8", errors="replace", newline="\n")


def page(report: Report, light: Mapping[str, bytes], dark: Mapping[str, bytes]) -> str:
    """The HTML, from the report and its plots on both grounds."""
    template = files("surgeon.measuring").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=f"The direction “{escape(report['name'])}”",
        lead=_lead(report),
        numbers=_numbers(report),
        warnings=_warnings(report["warnings"]),
        plots="\n".join(_plot(name, light[name], dark[name]) for name in plots.NAMES),
        guard=_guard(report["guard"]),
        tried=_tried(report),
        answers=_answers(report["answers"]),
        limits="\n".join(f"<li>{line}</li>" for line in _limits(report["chosen"])),
        footer=_footer(report),
        other=_other_sign(report["rates"].get("strengthened")),
    )


def _other_sign(raised: Mapping[str, Any] | None) -> str:
    """What a negative strength in the recipe does instead."""
    if not raised:
        return "No negative strength that was tried strengthens the manner (see the warnings)."
    return (
        f"Strength {number(raised['strength'])} in <code>recipe.yaml</code> strengthens the manner instead: it then "
        f"shows on {percent(raised['rate'])} of the prompts without it."
    )


def number(value: float | None) -> str:
    """Three digits; a dash for what was not measured."""
    if value is None or value != value:
        return "–"
    if 0 < abs(value) < 1e-4:
        return "under 0.0001"
    text = f"{value:.2g}" if abs(value) < 0.01 else f"{value:.3f}".rstrip("0").rstrip(".")
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def percent(value: float | None) -> str:
    """A share; a dash for what was not measured."""
    if value is None or value != value:
        return "–"
    # The space does not break.
    return f"{100 * value:.0f}\u00a0%" if value == 0 or value >= 0.01 else f"{100 * value:.1g}\u00a0%"


def strength_means(strength: float) -> str:
    """What an ablation of this strength does to the component along the direction."""
    left = number(abs(1 - strength))
    if strength == 0:
        return "leaves everything as it is"
    if strength < 0:
        return f"strengthens: it makes the component along the direction {left} times as large"
    if strength < 1:
        return f"weakens: it leaves {left} of the component along the direction"
    if strength == 1:
        return "removes: it leaves nothing along the direction in what these tensors write"
    if strength == 2:
        return "is a reflection: it turns the component along the direction round at full size and removes nothing"
    kind = "is more than a removal and less than a reflection" if strength < 2 else "is more than a reflection"
    return f"{kind}: it turns the component along the direction round, at {left} of its size"


def _lead(report: Report) -> str:
    counts, chosen, manner, model = report["counts"], report["chosen"], report["manner"], report["model"]
    measured = (
        f"Measured in <code>{escape(model['ref'])}</code> from {counts['positive']} positive and "
        f"{counts['negative']} negative prompts, and confirmed on {counts['held_out_positive']} + "
        f"{counts['held_out_negative']} held-out ones."
    )
    told = (
        f"The manner is told by {escape(manner['how'])}, which tells the two sides apart with a score of "
        f"{number(manner['tells_apart'])} out of 1."
    )
    does = (
        f"<strong>The recipe edits {escape(chosen['words'])}, at strength {number(chosen['strength'])}.</strong> "
        f"That {strength_means(chosen['strength'])}."
    )
    return f"<p>{measured} {told}</p>\n<p>{does}</p>\n<p><strong>Why this scope.</strong> {escape(chosen['why'])}</p>"


def _numbers(report: Report) -> str:
    rates, cards = report["rates"], []
    before, after, stronger = rates["before"], rates["after"], rates["strengthened"]
    cards.append(
        ("The manner shows", f"{percent(before['rate'])} → {percent(after['rate'])}",
         f"before: {_interval(before)}<br>after: {_interval(after)}")
    )  # fmt: skip
    cost = f"{number(report['kl']['chats_and_text'])} <small>nats a token</small>"
    neutral = f"KL from the unedited model, on {report['counts']['neutral']} neutral chats and texts"
    cards.append(("What it costs elsewhere", cost, neutral))
    if stronger is not None:
        cards.append(_strengthened(stronger, report["dose"]))
    return "\n".join(
        f'<div class="card"><div>{head}</div><div class="big">{big}</div><div class="soft small">{foot}</div></div>'
        for head, big, foot in cards
    )


def _strengthened(rate: Mapping[str, Any], dose: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """What the other sign does to negative prompts, beside what they show unedited where the dose plot knows it."""
    plain = next((row["rate_negative"] for row in dose if row["strength"] == 0), None)
    big = percent(rate["rate"]) if plain is None else f"{percent(plain)} → {percent(rate['rate'])}"
    raised = plain is None or rate["low"] > plain
    foot = _interval(rate) + ("" if raised else "<br>Strengthening does not clearly raise the manner here.")
    return f"On negative prompts, strengthened (strength {number(rate['strength'])})", big, foot


def _interval(rate: Mapping[str, Any]) -> str:
    return f"{rate['count']} of {rate['n']}; 95 % interval {percent(rate['low'])} to {percent(rate['high'])}"


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<section class="warnings"><h2>Warnings</h2><ul>{items}</ul></section>'


def _plot(name: str, light: bytes, dark: bytes) -> str:
    title, how = _PLOTS[name]
    one, other = (f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in (light, dark))
    return (
        f'<figure class="card"><h3>{title}</h3>'
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{other}">'
        f'<img src="{one}" alt="Plot: {title.lower()}"></picture>'
        f'<figcaption class="small">{how}</figcaption></figure>'
    )


def _guard(guard: Mapping[str, Any] | None) -> str:
    if guard is None:
        return '<p class="small" style="margin-top: 16px">No guard: nothing was projected out of the directions.</p>'
    parts = ["the first token's sink"] if guard["sink"] else []
    parts += [f"the top {guard['components']} components of neutral states"] if guard["components"] else []
    removed = guard["removed"]
    how_much = ""
    if removed:
        most = max(removed, key=removed.__getitem__)
        share = f"{percent(median(removed.values()))} of a direction in the median"
        how_much = f" That took {share}, at most {percent(removed[most])} (at {escape(most)})."
    out = f"The guard projected {' and '.join(parts) or 'nothing'} out of the directions."
    return f'<p class="small" style="margin-top: 16px">{out}{how_much}</p>'


def _tried(report: Report) -> str:
    chosen, rows = report["chosen"], report["tried"]
    if not any(_same(row, chosen) for row in rows):
        rows = [chosen, *rows]
    return "\n".join(_row(row, _same(row, chosen)) for row in rows)


def _same(row: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    return all(row[key] == chosen[key] for key in _SCOPE)


def _row(row: Mapping[str, Any], chosen: bool) -> str:
    strength = number(row["strength"]) + (" (reflection)" if row["strength"] == 2 else "")
    cells = {"strength": strength, "nats lost": number(row["nats"]), "KL": number(row["kl"]),
             "rate": percent(row["rate"])}  # fmt: skip
    mark = ' <span class="mark">← chosen</span>' if chosen else ""
    scope = f"<td>{escape(row['words'])}{mark}</td>"
    rest = "".join(f'<td data-label="{label}">{value}</td>' for label, value in cells.items())
    return f'<tr class="chosen">{scope}{rest}</tr>' if chosen else f"<tr>{scope}{rest}</tr>"


def _answers(answers: Sequence[Mapping[str, str]]) -> str:
    if not answers:
        return '<p class="soft">None were kept.</p>'
    cards = [_answer(answer) for answer in answers]
    more = "\n".join(cards[_OPEN:])
    folded = f"\n<details><summary>{len(cards) - _OPEN} more</summary>\n{more}\n</details>" if more else ""
    return "\n".join(cards[:_OPEN]) + folded


def _answer(answer: Mapping[str, str]) -> str:
    sides = "".join(
        f'<div><div class="soft small">{side}</div><div class="said" dir="auto">{escape(answer[side])}</div></div>'
        for side in ("before", "after")
    )
    prompt = f'<div class="soft small">prompt</div><div class="said" dir="auto">{escape(answer["prompt"])}</div>'
    return f'<div class="card answer">{prompt}<div class="sides">{sides}</div></div>'


def _limits(chosen: Mapping[str, Any]) -> Iterable[str]:
    """What a reader may not conclude."""
    yield (
        "That the concept is gone: linear predictors may still read it from the model's states. What changes is "
        "what the edited tensors write."
    )
    if str(chosen["at"]).startswith("own") or chosen["layers"] is not None or chosen["writers"] != "all":
        yield "That the residual stream holds none of it: what other tensors write passes by the edited ones."
    if chosen["strength"] != 1:
        yield (
            f"That nothing along the direction is written: strength {number(chosen['strength'])} "
            f"{strength_means(chosen['strength'])}. <code>surgeon verify</code> checks exactly that."
        )
    yield "That other manners stay as they are: none but this one was tested, and neutral text is a small sample."
    yield "That it holds for prompts of another kind: the held-out ones come from the same sets."


def _footer(report: Report) -> str:
    times = ", ".join(f"{escape(what)} {number(round(seconds, 1))} s" for what, seconds in report["seconds"].items())
    return f"Model fingerprint {escape(report['model']['fingerprint'])}. Time: {times}. The numbers are in report.json."
