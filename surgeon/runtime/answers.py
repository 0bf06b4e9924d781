"""Logits where answers are given: of several examples at once, and of nothing else, since the vocabulary dominates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surgeon.runtime.load import Loaded


def answer_logits(loaded: Loaded, rows: Sequence[tuple[Sequence[int], int]]) -> Tensor:
    """float32 [Σ count, vocab]: what comes next at the last `count` tokens of each row, row by row; with gradients.

    Rows are padded on the left, so that all answers end in one column and few others are computed.
    """
    longest, most = max(len(ids) for ids, _ in rows), max(count for _, count in rows)
    padded = [[0] * (longest - len(ids)) + list(ids) for ids, _ in rows]
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in rows], device=loaded.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = loaded.model(
        torch.tensor(padded, device=loaded.device), attention_mask=mask, position_ids=positions, use_cache=False,
        logits_to_keep=most,
    ).logits  # fmt: skip
    return torch.cat([row[most - count :] for row, (_, count) in zip(found, rows, strict=True)]).float()
