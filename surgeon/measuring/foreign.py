"""Any folder judged by a recipe, whatever wrote it: tensor by tensor, and its config and tokenizer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from surgeon.engine.events import Listener
from surgeon.engine.reading import Files
from surgeon.errors import CheckpointError, RunError
from surgeon.measuring.configs import check_side_files
from surgeon.measuring.examine import examine
from surgeon.measuring.files_check import stray_weights
from surgeon.measuring.judge import Judgement, judge
from surgeon.measuring.pool import Ticker, each
from surgeon.measuring.recompute import Bench
from surgeon.measuring.rounding import steps
from surgeon.measuring.summary import summarised
from surgeon.measuring.tables import pairs, same_bytes
from surgeon.measuring.terms import take_apart
from surgeon.measuring.verdict import Finding, Verdict, mismatch, note, unknown
from surgeon.planning.evaluation import ranges
from surgeon.planning.plan import Plan
from surgeon.planning.step import Target
from surgeon.store.checkpoint import Checkpoint, open_checkpoint
from surgeon.store.header import Stored
from surgeon.tensors import torch_dtype

CLAIM = "what the recipe gives"
TOUCHED = "changed, though the recipe does not touch it"
_BLOCK = 1 << 18


def judge_folder(folder: Path, plan: Plan, listener: Listener | None) -> Verdict:
    """Judge a checkpoint by the plan of a recipe."""
    try:
        checkpoint = open_checkpoint(folder, str(folder))
    except CheckpointError as error:
        return Verdict(str(folder), CLAIM, "", (mismatch("weights", error.message),))
    findings, matched = pairs(plan, checkpoint)
    findings += check_side_files(plan.files_from, checkpoint)
    findings += [
        note(name, "is not among the weights that were judged, but some loader may take it for them")
        for name in stray_weights(folder, set(checkpoint.shard_of.values()))
    ]
    files = Files()
    try:
        total = sum(stored.spec.nbytes for _, stored in matched)
        bench = Bench.of(plan, files, Ticker("verify", total, listener))
        largest_first = sorted(matched, key=lambda pair: -pair[1].spec.count)
        results = each(lambda pair: _judged(bench, checkpoint, *pair), largest_first)
    finally:
        files.close()
    judgements = [found for found in results if isinstance(found, Judgement)]
    findings += [found for found in results if isinstance(found, Finding)]
    more, proof = summarised(judgements, plan)
    grades = Counter(found.grade for found in judgements)
    return Verdict(str(folder), CLAIM, proof, (*findings, *more), {"tensors": len(matched), **grades})


def _judged(bench: Bench, checkpoint: Checkpoint, target: Target, stored: Stored) -> Judgement | Finding:
    untouched = bench.plan.steps[target.key].kernel in ("load", "same")
    if not stored.spec.is_float and stored.spec != target.spec:
        return unknown(target.name, f"is stored as {stored.spec.dtype}, which is not compared with {target.spec.dtype}")
    if not stored.spec.count:
        return Judgement(target.name, "untouched")
    try:
        found = _untouched(bench, target, stored) if untouched else _changed(bench, target, stored)
    except RunError as error:
        return mismatch(target.name, str(error.message))
    if found.grade == "wrong" and (other := _of_another(bench, target, stored)):
        return Judgement(target.name, "wrong", f"holds the values of {other}")
    return found


def _changed(bench: Bench, target: Target, stored: Stored) -> Judgement:
    anatomy = take_apart(bench.plan, target)
    evaluator, visible = bench.evaluator(target), False
    for start, stop in ranges(stored.spec.count, _BLOCK):
        found = bench.stored(stored, start, stop)
        expected = evaluator.value(target.key, start, stop).to(found.dtype).cpu()
        if not _same(found, expected):
            return judge(examine(bench, anatomy, stored))
        if not visible:
            begin = evaluator.value(anatomy.start, start, stop).to(found.dtype).cpu()
            visible = not _same(expected, begin)
    return Judgement(target.name, "exact", visible=visible)


def _untouched(bench: Bench, target: Target, stored: Stored) -> Judgement:
    """Byte-equal to its source, or the correctly rounded cast of it."""
    source = target.stored or bench.plan.steps[target.key].stored
    assert source is not None
    if not stored.spec.is_float:
        same = same_bytes(source, stored)
        return Judgement(target.name, "untouched") if same else Judgement(target.name, "wrong", TOUCHED)
    dtype, wrong, largest, nans = stored.spec.dtype, 0, 0, 0
    for start, stop in ranges(stored.spec.count, _BLOCK):
        found, expected = bench.stored(stored, start, stop), bench.stored(source, start, stop)
        if source.spec.dtype != dtype:
            expected = expected.to(torch_dtype(dtype))
        if not _same(found, expected):
            wrong += int(((found != expected) & ~(found.isnan() & expected.isnan())).sum())
            nans += int((found.isnan() & ~expected.isnan()).sum())
            largest = max(largest, int(steps(found, expected, dtype).max()))
    if nans:
        return Judgement(target.name, "wrong", "holds NaN where the recipe gives numbers", f"{nans} entries")
    if wrong:
        return Judgement(target.name, "wrong", TOUCHED, f"{wrong} entries, by {largest} ulp at most")
    return Judgement(target.name, "untouched")


def _of_another(bench: Bench, target: Target, stored: Stored) -> str:
    """The name of an input that has these very bytes under the tensor's name, where the recipe starts from another."""
    own = bench.plan.steps[take_apart(bench.plan, target).start].stored if target.action == "compute" else target.stored
    for model, source in bench.plan.sources.items():
        other = source.tensors.get(target.name) if isinstance(source, Checkpoint) else None
        if other is not None and other != own and same_bytes(other, stored):
            return str(model)
    return ""


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the values are the same, or else the bytes, so that NaN equals itself."""
    return torch.equal(one, other) or torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )
