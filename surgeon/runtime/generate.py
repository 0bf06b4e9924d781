"""Greedy continuations: batches padded on the left, with the ids that each example alone would get."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from surgeon.errors import RefusedError
from surgeon.runtime.load import Loaded
from surgeon.runtime.text import Encoded, Example, context, encode

_BATCH = 16

#: Padding changes logits by rounding only: by less than this share of the largest, or four steps of the dtype. A row
#: with a choice closer than that is done again, alone.
_CLOSE = 1e-5


@dataclass
class _Run:
    """The ids so far of a batch, and whether each row's choices were all clear."""

    ids: list[list[int]]
    ended: list[bool] = field(default_factory=list)
    clear: list[bool] = field(default_factory=list)


def continuations(loaded: Loaded, examples: Iterable[Example], max_new_tokens: int = 64) -> list[str]:
    """What the model says next to each example, greedily, as text without special tokens."""
    prompts = [encode(loaded, example).ids for example in examples]
    found = continuation_ids(loaded, prompts, max_new_tokens)
    return [loaded.tokenizer.decode(ids, skip_special_tokens=True) for ids in found]


def answered(loaded: Loaded, encoded: Sequence[Encoded], count: int) -> list[Encoded]:
    """The examples, those without a response with the model's own: greedy, `count` tokens at most, as room allows."""
    silent = [at for at, one in enumerate(encoded) if not one.response]
    longest = max((len(encoded[at].ids) for at in silent), default=0)
    room = int(min(count, context(loaded) - longest))
    answers = continuation_ids(loaded, [encoded[at].ids for at in silent], room) if silent else []
    found = list(encoded)
    for at, answer in zip(silent, answers, strict=True):
        found[at] = Encoded([*found[at].ids, *answer], found[at].prompt)
    return found


@torch.no_grad()
def continuation_ids(
    loaded: Loaded, prompts: Sequence[Sequence[int]], max_new_tokens: int = 64, batch: int = _BATCH
) -> list[list[int]]:
    """Greedy continuations of token ids, up to and without the end token. RefusedError beyond the model's context."""
    longest = max(map(len, prompts), default=0)
    if longest + max_new_tokens > context(loaded):
        raise RefusedError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit the context of {context(loaded)}",
            hint="ask for fewer new tokens, or shorten the prompts",
        )
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    found: dict[int, list[int]] = {}
    for first in range(0, len(order), batch):
        members = order[first : first + batch]
        run = _greedy(loaded, [prompts[index] for index in members], max_new_tokens)
        for row, index in enumerate(members):
            alone = run.clear[row] or len(members) == 1
            found[index] = run.ids[row] if alone else _greedy(loaded, [prompts[index]], max_new_tokens).ids[0]
    return [found[index] for index in range(len(prompts))]


def _greedy(loaded: Loaded, prompts: Sequence[Sequence[int]], count: int) -> _Run:
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts], device=loaded.device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=loaded.device)
    ends, cache = _ends(loaded), None
    run = _Run([[] for _ in prompts], [False] * len(prompts), [True] * len(prompts))
    for _ in range(count):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = loaded.model(
            ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        cache, ids = out.past_key_values, _choose(out.logits[:, -1], run, ends)
        if all(run.ended):
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
    return run


def _choose(logits: Tensor, run: _Run, ends: frozenset[int]) -> Tensor:
    """The best token of each row, added to its ids where it has not ended."""
    best = logits.topk(2, -1)
    near = max(_CLOSE, 4 * torch.finfo(logits.dtype).eps) * logits.abs().amax(1)
    close = best.values[:, 0] - best.values[:, 1] <= near
    for row, (token, unclear) in enumerate(zip(best.indices[:, 0].tolist(), close.tolist(), strict=True)):
        if not run.ended[row]:
            run.clear[row] = run.clear[row] and not unclear
            run.ended[row] = token in ends
            run.ids[row] += [] if token in ends else [token]
    return best.indices[:, :1]


def _ends(loaded: Loaded) -> frozenset[int]:
    """The tokens that end a continuation, by the model's generation config."""
    found = loaded.model.generation_config.eos_token_id
    if found is None:
        found = loaded.config.eos_token_id
    return frozenset([found] if isinstance(found, int) else found or ())
