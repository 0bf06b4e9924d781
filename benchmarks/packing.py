"""Many short conversations in one pass without padding: what all of them begin with is computed once.

The rows lie behind one another in a single sequence; a token attends to the common beginning and to its own row, and
counts its position from there. On a CPU this halves the work of short chats, whose system prompt is half of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from skills import Example
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """One sequence: ids and positions [1, tokens], mask [1, 1, tokens, tokens]; where answers are predicted.

    `wanted` are the places whose next token belongs to an answer, `targets` those tokens, `rows` the rows, one each.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    wanted: Tensor
    targets: Tensor
    rows: Tensor

    def logits(self, model: Any) -> Tensor:
        """Logits [wanted, vocabulary] in float32; the head, most of the work of a small model, sees no other place."""
        hidden = model.model(input_ids=self.ids, attention_mask=self.mask, position_ids=self.positions, use_cache=False)
        return model.lm_head(hidden.last_hidden_state[0, self.wanted]).float()

    def right(self, model: Any) -> list[bool]:
        """Whether each row's answer, its end included, is what the model says greedily."""
        hit = self.logits(model).argmax(-1) == self.targets
        return [bool(hit[self.rows == row].all()) for row in range(int(self.rows.max()) + 1)]


def common(rows: Sequence[Example]) -> int:
    """How many tokens all rows begin with, at most up to the first answer."""
    longest = min(row.start - 1 for row in rows)
    return next((i for i in range(longest) if len({row.ids[i] for row in rows}) > 1), longest)


def pack(rows: Sequence[Example]) -> Packed:
    """Put rows into one sequence."""
    shared = common(rows)
    ids, positions, owners = list(rows[0].ids[:shared]), list(range(shared)), [-1] * shared
    wanted, targets, asked = [], [], []
    for number, row in enumerate(rows):
        begins = len(ids) - shared
        ids += row.ids[shared:]
        positions += range(shared, len(row.ids))
        owners += [number] * (len(row.ids) - shared)
        wanted += range(begins + row.start - 1, begins + len(row.ids) - 1)
        targets += row.ids[row.start :]
        asked += [number] * (len(row.ids) - row.start)
    owner = torch.tensor(owners)
    mask = ((owner[None] == -1) | (owner[None] == owner[:, None])).tril()
    return Packed(
        torch.tensor([ids]), torch.tensor([positions]), mask[None, None],
        torch.tensor(wanted), torch.tensor(targets), torch.tensor(asked),
    )  # fmt: skip
