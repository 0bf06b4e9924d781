"""The judgements of all tensors taken together: faults grouped, strengths pooled, one sentence of proof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from surgeon.anatomy.stacks import positions
from surgeon.measuring.fit import Strength, pooled
from surgeon.measuring.judge import NOT_APPLIED, STRENGTH, Judgement, off, resolved
from surgeon.measuring.verdict import Finding, mismatch, note, unknown
from surgeon.planning.plan import Plan


def summarised(judgements: Sequence[Judgement], plan: Plan) -> tuple[list[Finding], str]:
    """Findings, and what is proven in words that follow the folder's name."""
    changed = [found for found in judgements if found.grade != "untouched"]
    findings = [*_faults(changed, judgements), *_unseen(changed), *_other_arithmetic(changed)]
    return findings, _proof(judgements)


def _faults(changed: Sequence[Judgement], every: Sequence[Judgement]) -> Iterable[Finding]:
    applied = [f for f in changed if f.text != NOT_APPLIED and (f.visible or f.grade == "wrong")]
    skipped = [f.name for f in changed if f.text == NOT_APPLIED]
    for found in every:
        if found.grade != "wrong" or found.text == STRENGTH:
            continue
        text = found.text
        if text == NOT_APPLIED and applied:
            text = f"skipped{_in_layers(skipped, every)}: not applied here, though applied elsewhere"
        yield mismatch(found.name, text, detail=found.detail)
    yield from _strength_faults([found for found in changed if found.text == STRENGTH])


def _strength_faults(found: Sequence[Judgement]) -> Iterable[Finding]:
    for label in dict.fromkeys(label for one in found for label, *_ in one.strengths):
        members = [(one, s) for one in found for own, s, _ in one.strengths if own == label]
        mean = pooled([strength for _, strength in members])
        for one, strength in members:
            text = f"{label}: the strength is off by {mean.excess:+.1%} (± {max(mean.error, 1e-4):.2%})"
            yield mismatch(one.name, text, detail=f"{strength.excess:+.1%}")


def _in_layers(names: Sequence[str], every: Sequence[Judgement]) -> str:
    known = positions(found.name for found in every)
    layers = {known[name].index for name in names if name in known and known[name].place == "layer"}
    return f" in layer(s) {', '.join(map(str, sorted(layers)))}" if layers else ""


def _unseen(changed: Sequence[Judgement]) -> Iterable[Finding]:
    """A change below the resolution of the dtype leaves no trace: right and not applied are the same bytes."""
    below = [found.name for found in changed if found.grade != "wrong" and not found.visible]
    if not below:
        return
    message = f"the change is below the resolution of the dtype in {len(below)} of {len(changed)} changed tensors"
    if len(below) == len(changed):
        yield unknown("changes", message, "compare in float32: write the result with dtype float32")
    else:
        yield note("changes", f"{message}: there, applied and not applied are the same bytes")


def _other_arithmetic(changed: Sequence[Judgement]) -> Iterable[Finding]:
    """Work in 16 bits is judged by bounds and by strength; what one tensor leaves open, all together may settle."""
    judged = [found for found in changed if found.grade == "other arithmetic"]
    for text, count in Counter(found.text for found in judged).items():
        yield note("arithmetic", f"{count} of {len(changed)} changed tensors are as computed with {text}")
    open_ = [found for found in judged if found.open]
    for label in dict.fromkeys(label for found in judged for label, *_ in found.strengths):
        members = [(s, allowed) for found in judged for own, s, allowed in found.strengths if own == label]
        mean, allowed = pooled([s for s, _ in members]), max(a for _, a in members)
        if off(mean, allowed):
            yield mismatch(label, f"the strength over all tensors is off by {mean.excess:+.1%} (± {mean.error:.2%})")
        elif any(own == label for found in open_ for own, *_ in found.strengths) and not resolved(mean, allowed):
            yield unknown(label, _open_text(len(open_), mean), "compare a result that was computed in float32")


def _open_text(count: int, mean: Strength) -> str:
    return f"rounding hides the strength in {count} tensors; known only to ± {4 * mean.error:.1%}, where 1 % must show"


def _proof(judgements: Sequence[Judgement]) -> str:
    grades = Counter(found.grade for found in judgements)
    parts = [f"{grades['exact']} bit for bit"] if grades["exact"] else []
    parts += [f"{grades['rounding']} within one rounding"] if grades["rounding"] else []
    parts += [f"{grades['other arithmetic']} within the roundings of 16-bit work"] if grades["other arithmetic"] else []
    changed = sum(grades.values()) - grades["untouched"] - grades["wrong"]
    made = (
        f"{changed} changed tensors as the recipe gives them ({', '.join(parts)})" if changed else "no changed tensor"
    )
    return f"holds {made} and {grades['untouched']} untouched ones equal to their source"
