"""What a model thinks of tokens: log-probabilities of a response, and whole distributions to compare. In nats."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surgeon.runtime.load import Loaded
from surgeon.runtime.text import Encoded


@torch.no_grad()
def log_probabilities(loaded: Loaded, encoded: Encoded) -> Tensor:
    """log p of each response token given all before it, float32 [tokens] on the CPU; one forward pass."""
    count = len(encoded.response)
    if not count:
        return torch.zeros(0)
    logits = _logits(loaded, encoded.ids[:-1], count)
    return logits.gather(1, torch.tensor(encoded.response, device=logits.device)[:, None])[:, 0].cpu()


@torch.no_grad()
def distributions(loaded: Loaded, encoded: Encoded) -> Tensor:
    """The log-probabilities of what comes next at every position but the first, float32 [tokens − 1, vocab]."""
    count = len(encoded.ids) - 1
    if not count:
        return torch.zeros(0, loaded.config.vocab_size)
    return _logits(loaded, encoded.ids, count)


def kl(before: Tensor, after: Tensor) -> float:
    """KL(before ‖ after) of two tables of log-probabilities [tokens, vocab], the mean over tokens, in nats."""
    terms = torch.where(before == -torch.inf, 0.0, before.exp() * (before - after.to(before.device)))
    return float(terms.sum(1).cpu().double().mean())


def _logits(loaded: Loaded, ids: list[int], count: int) -> Tensor:
    """Log-probabilities at the last `count` positions."""
    given = torch.tensor([ids], device=loaded.device)
    return loaded.model(given, use_cache=False, logits_to_keep=count).logits[0].float().log_softmax(-1)


@torch.no_grad()
def batch_log_probabilities(loaded: Loaded, encoded: Sequence[Encoded]) -> list[Tensor]:
    """`log_probabilities` of several examples in one forward pass."""
    tables = _batched(loaded, [(one.ids[:-1], len(one.response)) for one in encoded])
    pairs = zip(tables, encoded, strict=True)
    return [table.gather(1, torch.tensor(one.response, device=table.device)[:, None])[:, 0] for table, one in pairs]


@torch.no_grad()
def batch_distributions(loaded: Loaded, encoded: Sequence[Encoded]) -> list[Tensor]:
    """`distributions` of several examples in one forward pass."""
    return _batched(loaded, [(one.ids, len(one.ids) - 1) for one in encoded])


def _batched(loaded: Loaded, wanted: Sequence[tuple[list[int], int]]) -> list[Tensor]:
    """Log-probabilities at the last so many positions of each row, float32 on the CPU.

    Rows are padded on the right, which no earlier token of a causal model sees.
    """
    length = max(len(ids) for ids, _ in wanted)
    rows = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in wanted], device=loaded.device)
    kept = sorted({at for ids, count in wanted for at in range(len(ids) - count, len(ids))})
    place = {at: index for index, at in enumerate(kept)}
    positions = torch.tensor(kept, device=loaded.device)
    logits = loaded.model(rows, use_cache=False, logits_to_keep=positions).logits
    found = []
    for row, (ids, count) in zip(logits, wanted, strict=True):
        chosen = [place[at] for at in range(len(ids) - count, len(ids))]
        found.append(row[chosen].float().log_softmax(-1).cpu())
    return found
