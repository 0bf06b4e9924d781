"""`surgeon reproduce`: build an output again from what its receipt names, and tell whether it comes out the same."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import RefusedError
from surgeon.space.expr import Expr, Model, walk
from surgeon.space.output import Recipe

if TYPE_CHECKING:
    from surgeon.engine.events import Listener
    from surgeon.measuring.receipt_file import ReceiptFacts
    from surgeon.measuring.verdict import Finding, Verdict


def reproduce(
    what: str | Path,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    memory: int | str | None = None,
    threads: int | None = None,
    overrides: Mapping[str, str] | None = None,
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> Verdict:
    """Build OUT, or what a receipt tells of, again from the inputs the receipt names, and compare every byte.

    It is built in `out`, or in a temporary folder that is removed. `device` is by default the kind that was used then;
    `overrides` say where inputs are now (``models.NAME``). Inputs from the Hub are taken at the commit in the receipt.
    The verdict's exit code is 0 where all is identical, 3 where something differs; it names the tensors, and inputs
    that changed. RefusedError where an input is not there.
    """
    from surgeon.engine.devices import available
    from surgeon.measuring.built_again import CLAIM, compare
    from surgeon.measuring.receipt_file import facts_of, read_receipt, receipt_in
    from surgeon.measuring.verdict import Verdict
    from surgeon.verbs.apply import apply

    place = Path(what).expanduser()
    folder = place if place.is_dir() else place.parent
    receipt = receipt_in(place) if place.is_file() else read_receipt(place)
    recipe = _recipe(receipt, folder, place, overrides or {})
    used = receipt.made_with.get("device", "cpu")
    if device == "auto" and used in available():
        device = used
    asked: dict[str, Any] = {"device": device, "memory": memory, "threads": threads, "overwrite": overwrite}
    with _room(out) as target:
        built = apply(recipe, target, allow_nan=True, any_model=True, on_event=on_event, **asked)
        again = facts_of(built.to_dict(), str(built.path))
    findings = [*compare(receipt, again), *(_own(folder, receipt, on_event) if place.is_dir() else ())]
    count = len(receipt.tensors)
    proof = f"is what its inputs give: {count} tensors in {len(receipt.files)} file(s), built again byte for byte"
    return Verdict(
        str(place), CLAIM, proof, tuple(findings), {"tensors": count, "built": None if out is None else str(out)}
    )


@contextmanager
def _room(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="surgeon-") as folder:
        yield Path(folder) / "again"


def _recipe(receipt: ReceiptFacts, folder: Path, place: Path, overrides: Mapping[str, str]) -> Recipe:
    """The resolved recipe of a receipt, with the Hub's inputs at the commits it names."""
    from surgeon.recipe.load import parse

    beside = folder / "surgeon"
    if missing := [name for name in receipt.artifacts if not (beside / name).is_file()]:
        raise RefusedError(
            f"{place} was made with {', '.join(missing)}, which is not in {beside}",
            hint="give the whole folder, or put these files into surgeon/ beside the receipt",
        )
    recipe = parse(receipt.recipe.resolved, file=str(place), folder=beside, overrides=overrides).recipe
    commits = {facts.ref: f"{facts.ref}@{facts.revision}" for facts in receipt.inputs if facts.revision}
    return _pinned(recipe, {ref: pinned for ref, pinned in commits.items() if "@" not in ref})


def _pinned(recipe: Recipe, commits: Mapping[str, str]) -> Recipe:
    from surgeon.planning.prepare import rebuilt

    made: dict[Expr, Expr] = {}
    files_from = recipe.output.files_from
    for root in (recipe.expr, *([files_from] if files_from is not None else [])):
        for node in walk(root):
            again = rebuilt(node, made)
            if isinstance(again, Model) and again.ref in commits:
                again = replace(again, ref=commits[again.ref])
            made[node] = again
    output = replace(recipe.output, files_from=None if files_from is None else made[files_from])
    return Recipe(made[recipe.expr], output)


def _own(folder: Path, receipt: ReceiptFacts, listener: Listener | None) -> list[Finding]:
    """Whether the folder is what its receipt says, which is what was compared."""
    from surgeon.engine.reading import Files
    from surgeon.measuring.files_check import check_files, check_tensors
    from surgeon.measuring.reading import Ticker, digests

    findings, checkpoint = check_files(folder, receipt)
    if checkpoint is None:
        return findings
    stored = tuple(checkpoint.tensors.values())
    with closing(Files()) as files:
        hashes = digests(files, stored, Ticker("verify", sum(one.spec.nbytes for one in stored), listener))
    return [*findings, *check_tensors(checkpoint, receipt, hashes)]
