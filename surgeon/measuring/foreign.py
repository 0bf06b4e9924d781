"""Any folder judged by a recipe, whatever wrote it: tensor by tensor, and its config and tokenizer."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import torch

from surgeon.engine.events import Listener
from surgeon.engine.reading import Files
from surgeon.errors import CheckpointError, RunError
from surgeon.measuring.configs import check_side_files
from surgeon.measuring.difference import changes
from surgeon.measuring.examine import examine
from surgeon.measuring.files_check import stray_weights
from surgeon.measuring.judge import NAN, Judgement, judge
from surgeon.measuring.reading import Ticker, each, same_bytes
from surgeon.measuring.recompute import Bench, same
from surgeon.measuring.summary import summarised
from surgeon.measuring.tables import pairs
from surgeon.measuring.terms import take_apart
from surgeon.measuring.verdict import Finding, Verdict, mismatch, note, unknown
from surgeon.planning.evaluation import ranges
from surgeon.planning.plan import Plan
from surgeon.planning.step import Target
from surgeon.store.checkpoint import open_checkpoint
from surgeon.store.header import Stored

CLAIM = "what the recipe gives"
TOUCHED = "changed, though the recipe does not touch it"
_STRAY = "is not among the weights that were judged, but some loader may take it for them"
_BLOCK = 1 << 18
_CODES = ("F8_E4M3",)


def judge_folder(folder: Path, plan: Plan, listener: Listener | None) -> Verdict:
    """Judge a checkpoint by the plan of a recipe."""
    try:
        checkpoint = open_checkpoint(folder, str(folder))
    except CheckpointError as error:
        return Verdict(str(folder), CLAIM, "", (mismatch("weights", error.message),))
    with closing(Files()) as files:
        findings, matched = pairs(plan, checkpoint, files)
        findings += check_side_files(plan.files_from, checkpoint, plan.written_config, plan.files)
        for name in stray_weights(folder, set(checkpoint.shard_of.values())):
            findings.append(note(name, _STRAY))
        total = sum(stored.spec.nbytes for _, stored in matched)
        bench = Bench.of(plan, files, Ticker("verify", total, listener))
        results = each(lambda pair: _judged(bench, *pair), sorted(matched, key=lambda pair: -pair[1].spec.count))
    judgements = [found for found in results if isinstance(found, Judgement)]
    findings += [found for found in results if isinstance(found, Finding)]
    more, proof = summarised(judgements)
    grades = Counter(found.grade for found in judgements)
    return Verdict(str(folder), CLAIM, proof, (*findings, *more), {"tensors": len(matched), **grades})


def _judged(bench: Bench, target: Target, stored: Stored) -> Judgement | Finding:
    if not stored.spec.is_float and stored.spec != target.spec:
        return unknown(target.name, f"is stored as {stored.spec.dtype}, which is not compared with {target.spec.dtype}")
    step = bench.plan.steps[target.key]
    try:
        if not stored.spec.count:
            return Judgement(target.name, "untouched")
        if target.spec.dtype in _CODES or step.kernel == "fp8:scales":
            return _requantised(bench, target, stored)
        if step.kernel not in ("load", "same"):
            return _changed(bench, target, stored)
        source = target.stored or step.stored
        assert source is not None
        return _untouched(bench, target.name, source, stored)
    except RunError as error:
        return mismatch(target.name, error.message)


def _changed(bench: Bench, target: Target, stored: Stored) -> Judgement:
    anatomy = take_apart(bench.plan, target)
    evaluator, visible = bench.evaluator(target.key), False
    for start, stop in ranges(stored.spec.count, _BLOCK):
        found = bench.stored(stored, start, stop)
        expected, begin = (
            evaluator.value(key, start, stop).to(found.dtype).cpu() for key in (target.key, anatomy.start)
        )
        if not _equal(found, expected):
            return judge(target.name, examine(bench, anatomy, stored))
        visible = visible or not _equal(expected, begin)
    return Judgement(target.name, "exact", visible=visible)


def _requantised(bench: Bench, target: Target, stored: Stored) -> Judgement | Finding:
    """Codes, or the scales beside them: those the recipe gives, those of the model it starts from, or cannot tell."""
    if target.stored is not None:
        return _untouched(bench, target.name, target.stored, stored)
    evaluator = bench.evaluator(target.key)
    for start, stop in ranges(stored.spec.count, _BLOCK):
        found = bench.stored(stored, start, stop)
        if not _equal(found, evaluator.value(target.key, start, stop).to(found.dtype).cpu()):
            return unknown(target.name, "is quantised in another way than here, which is not judged entry by entry")
    return Judgement(target.name, "exact")


def _untouched(bench: Bench, name: str, source: Stored, stored: Stored) -> Judgement:
    """Byte-equal to its source, or the correctly rounded cast of it."""
    bench.tick(stored.spec.nbytes)
    if same_bytes(bench.files, source, stored):
        return Judgement(name, "untouched")
    if not stored.spec.is_float:
        return Judgement(name, "wrong", TOUCHED)
    found, _ = changes(name, source, stored, bench.files, rounded=True)
    if found.nans:
        return Judgement(name, "wrong", NAN, f"{found.nans} entries")
    if found.changed:
        return Judgement(name, "wrong", TOUCHED, f"{found.changed} entries, by {found.ulps} ulp at most")
    return Judgement(name, "untouched")


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the values are the same, or else the bytes, so that NaN equals itself."""
    return torch.equal(one, other) or same(one, other)
