"""The judgements of all tensors taken together: faults grouped, strengths pooled, one sentence of proof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from surgeon.anatomy.stacks import positions
from surgeon.measuring.fit import RESOLUTION, Strength, pooled
from surgeon.measuring.judge import NOT_APPLIED, STRENGTH, Judgement
from surgeon.measuring.verdict import Finding, mismatch, note, unknown


def summarised(judgements: Sequence[Judgement]) -> tuple[list[Finding], str]:
    """Findings, and what is proven in words that follow the folder's name."""
    changed = [found for found in judgements if found.grade != "untouched"]
    return [*_faults(changed, judgements), *_unseen(changed), *_other_arithmetic(changed)], _proof(judgements)


def _faults(changed: Sequence[Judgement], every: Sequence[Judgement]) -> Iterator[Finding]:
    skipped = [found.name for found in changed if found.text == NOT_APPLIED]
    applied = any(found.text != NOT_APPLIED and (found.visible or found.grade == "wrong") for found in changed)
    where = f"skipped{_in_layers(skipped, every)}: not applied here, though applied elsewhere"
    for found in every:
        if found.grade == "wrong" and found.text != STRENGTH:
            text = where if applied and found.text == NOT_APPLIED else found.text
            yield mismatch(found.name, text, detail=found.detail)
    for members in _by_label([found for found in changed if found.text == STRENGTH]):
        mean = pooled([strength for _, strength in members])
        text = f"{mean.label}: the strength is off by {mean.excess:+.1%} (± {max(mean.error, 1e-4):.2%})"
        yield from (mismatch(name, text, detail=f"{strength.excess:+.1%}") for name, strength in members)


def _by_label(judgements: Sequence[Judgement]) -> list[list[tuple[str, Strength]]]:
    """(tensor, strength) of each change, over all tensors."""
    groups: dict[str, list[tuple[str, Strength]]] = {}
    for found in judgements:
        for strength in found.strengths:
            groups.setdefault(strength.label, []).append((found.name, strength))
    return list(groups.values())


def _in_layers(names: Sequence[str], every: Sequence[Judgement]) -> str:
    known = positions(found.name for found in every)
    layers = {known[name].index for name in names if name in known and known[name].place == "layer"}
    return f" in layer(s) {', '.join(map(str, sorted(layers)))}" if layers else ""


def _unseen(changed: Sequence[Judgement]) -> Iterator[Finding]:
    """A change below the resolution of the dtype leaves no trace: right and not applied are the same bytes."""
    below = sum(found.grade != "wrong" and not found.visible for found in changed)
    message = f"the change is below the resolution of the dtype in {below} of {len(changed)} changed tensors"
    if below and below == len(changed):
        yield unknown("changes", message, "compare in float32: write the result with dtype float32")
    elif below:
        yield note("changes", f"{message}: there, applied and not applied are the same bytes")


def _other_arithmetic(changed: Sequence[Judgement]) -> Iterator[Finding]:
    """Work in 16 bits is judged by bounds and by strength; what one tensor leaves open, all together may settle."""
    judged = [found for found in changed if found.grade == "other arithmetic"]
    for text, count in Counter(found.text for found in judged).items():
        yield note("arithmetic", f"{count} of {len(changed)} changed tensors are as computed with {text}")
    for members in _by_label(judged):
        mean = pooled([strength for _, strength in members])
        if mean.off:
            message = f"the strength over all tensors is off by {mean.excess:+.1%} (± {mean.error:.2%})"
            yield mismatch(mean.label, message)
        elif mean.bound >= RESOLUTION:
            message = f"rounding hides the strength; known only to ± {mean.bound:.1%}, where 1 % must show"
            yield unknown(mean.label, message, "compare a result that was computed in float32")


def _proof(judgements: Sequence[Judgement]) -> str:
    grades = Counter(found.grade for found in judgements)
    words = {
        "exact": "bit for bit",
        "rounding": "within one rounding",
        "other arithmetic": "within the roundings of 16-bit work",
    }
    parts = [f"{grades[grade]} {text}" for grade, text in words.items() if grades[grade]]
    count = sum(grades[grade] for grade in words)
    made = f"{count} changed tensors as the recipe gives them ({', '.join(parts)})" if count else "no changed tensor"
    return f"holds {made} and {grades['untouched']} untouched ones equal to their source"
