"""The zeros a receipt promises, proved again from the bytes: ‖QᵀW'‖/‖QᵀW‖ of every edited writer against its floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from surgeon.artifacts.direction import Direction
from surgeon.artifacts.kinds import open_artifact
from surgeon.engine.invariants import Projection, frame_of
from surgeon.engine.reading import Files
from surgeon.errors import SurgeonError
from surgeon.measuring.floats import floats
from surgeon.measuring.reading import each, elements
from surgeon.measuring.receipt_file import ReceiptFacts, ZeroFacts
from surgeon.measuring.verdict import Finding, mismatch
from surgeon.planning.evaluation import tile_elements
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.header import Stored

#: Largest relative error of one stored entry; float32 also has that of the arithmetic before it.
_UNIT = {"F8_E4M3": 2.0**-4, "BF16": 2.0**-9, "F16": 2.0**-12, "F32": 2.0**-21, "F64": 2.0**-40}
#: What float32 arithmetic leaves of QᵀW: where one coordinate holds most of Q, what is stored there is far smaller.
_ARITHMETIC = 2.0**-22
_ROOM = 4.0


@dataclass(frozen=True)
class Zero:
    """What is left in one tensor: ‖QᵀW'‖ and ‖QᵀW‖, and what rounding alone explains of the first."""

    tensor: str
    after: float
    before: float
    explained: float

    @property
    def ratio(self) -> float:
        """‖QᵀW'‖/‖QᵀW‖."""
        return self.after / self.before if self.before else 0.0


def check_zeros(
    folder: Path, receipt: ReceiptFacts, checkpoint: Checkpoint, files: Files
) -> tuple[list[Finding], tuple[Zero, ...]]:
    """Measure every promised zero; findings for artifacts that are not the receipt's and for zeros that are none."""
    directions, findings = _directions(folder, receipt)
    wanted = [
        facts
        for facts in receipt.invariants
        if all(use.file in directions for use in facts.directions)
        and all(name in checkpoint.tensors for name in (facts.tensor, *facts.gains))
    ]
    lost = {facts.tensor for facts in receipt.invariants} - {facts.tensor for facts in wanted}
    findings += [mismatch(name, "promises a zero that cannot be measured: a part of it is missing") for name in lost]
    found = each(lambda facts: _zero(facts, directions, checkpoint, files), wanted)
    for zero in found:
        if not zero.after <= _ROOM * zero.explained:
            findings.append(
                mismatch(
                    zero.tensor,
                    f"still writes along what its edit removed: ‖RᵀW'‖/‖RᵀW‖ = {zero.ratio:.1e}, rounding explains "
                    f"{zero.explained / max(zero.before, 1e-300):.1e}",
                )
            )
    return findings, tuple(found)


def words(zeros: Sequence[Zero]) -> str:
    """What is proven of them, to follow the rest of a proof."""
    if not zeros:
        return ""
    worst = max(zero.ratio for zero in zeros)
    return f"; RᵀW' = 0 in {len(zeros)} edited tensors, from their bytes (largest ‖RᵀW'‖/‖RᵀW‖ {worst:.1e})"


def _directions(folder: Path, receipt: ReceiptFacts) -> tuple[dict[str, Direction], list[Finding]]:
    held: dict[str, Direction] = {}
    findings = []
    for name, digest in receipt.artifacts.items():
        path = folder / "surgeon" / name
        if Path(name).name != name:
            findings.append(mismatch(name, "is no file name in surgeon/"))
            continue
        try:
            found = open_artifact(path)
        except SurgeonError as error:
            findings.append(mismatch(f"surgeon/{name}", f"cannot be read: {error.message}"))
            continue
        if found.digest != digest:
            findings.append(mismatch(f"surgeon/{name}", "is not the artifact of the receipt"))
        elif isinstance(found, Direction):
            held[name] = found
    return held, findings


def _zero(facts: ZeroFacts, directions: Mapping[str, Direction], checkpoint: Checkpoint, files: Files) -> Zero:
    rows = [directions[use.file].rows(use.point) for use in facts.directions]
    gains = [_whole(files, checkpoint.tensors[name]) for name in facts.gains]
    stored = checkpoint.tensors[facts.tensor]
    frame = frame_of(rows, gains, facts.gain)
    after = Projection(frame, facts.axis, stored.spec.shape)
    squares = Projection(frame.square().sum(1, keepdim=True), facts.axis, stored.spec.shape)
    explained, size = 0.0, tile_elements(stored.spec.shape)
    read = floats(checkpoint, facts.tensor, files)
    for start in range(0, stored.spec.count, size):
        tile = read(start, min(start + size, stored.spec.count)).double()
        after.add(tile, start)
        squares.add(tile.square(), start)
    explained = _UNIT.get(stored.spec.dtype, 0.0) * squares.total**0.5 + _ARITHMETIC * facts.before
    return Zero(facts.tensor, after.norm, facts.before, explained)


def _whole(files: Files, stored: Stored) -> Tensor:
    return elements(files, stored, 0, stored.spec.count).to(torch.float64)
