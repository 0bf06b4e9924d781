"""How good a merged model is: exact answers of every skill, and how far its chat is from the base model's."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from packing import Packed, pack
from questions import held_out
from skills import Example, answers, encode
from torch import Tensor

from surgeon.directions.examples import neutral_examples
from surgeon.runtime.load import load

SPLITS = ("choose", "score")
CHOOSING, SCORING = 32, 64
AT_ONCE = 16
REPLY = 24


@dataclass(frozen=True)
class Yardstick:
    """Replies of the base model in one sequence, and its log-probabilities there, [tokens, vocabulary]."""

    packed: Packed
    before: Tensor


class Judge:
    """The base model in float32, whose weights are replaced while a merge is measured, and what it is asked.

    Answers are judged in bfloat16, in which such a model is served, and by one pass over the right answer: it is what
    greedy decoding gives if and only if each of its tokens, the end included, is the likeliest after those before it.
    """

    def __init__(self, folder: Path, skills: Sequence[str], cache: Path) -> None:
        self.loaded = load(folder, device="cpu")
        self._served = copy.deepcopy(self.loaded.model).bfloat16()
        self._asked = {skill: self._questions(skill) for skill in skills}
        rows = self._replies(cache)
        parts = {"choose": rows[::3], "score": [row for i, row in enumerate(rows) if i % 3]}
        self._chat = {split: self._yardsticks(part) for split, part in parts.items()}

    @torch.no_grad()
    def measure(self, skills: Sequence[str], split: str) -> dict[str, Any]:
        """Each skill's share of exact answers, and KL(base ‖ model) in nats a token of the base's replies to chat."""
        for served, own in zip(self._served.parameters(), self.loaded.model.parameters(), strict=True):
            served.copy_(own)
        accuracy = {}
        for skill in skills:
            right = [hit for packed in self._asked[skill][split] for hit in packed.right(self._served)]
            accuracy[skill] = sum(right) / len(right)
        return {"accuracy": accuracy, "kl": self._drift(split)}

    @contextmanager
    def having(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The model with these weights instead of its own, while the context lasts."""
        own = self.loaded.model.state_dict()
        if unknown := weights.keys() - own.keys():
            raise ValueError(f"no weights of this model: {', '.join(sorted(unknown))}")
        kept = {name: own[name].clone() for name in weights}
        try:
            _copy(own, weights)
            yield
        finally:
            _copy(own, kept)

    def _drift(self, split: str) -> float:
        total = count = 0.0
        for chat in self._chat[split]:
            after = chat.packed.logits(self.loaded.model).log_softmax(-1)
            total += float(F.kl_div(after, chat.before, log_target=True, reduction="sum"))
            count += len(after)
        return total / count

    def _questions(self, skill: str) -> dict[str, list[Packed]]:
        """By split."""
        found = {}
        for split, drawn in zip(SPLITS, held_out(skill, CHOOSING, SCORING), strict=True):
            rows = [encode(self.loaded.tokenizer, question) for question in drawn]
            found[split] = [pack(batch) for batch in _batches(rows)]
        return found

    def _replies(self, cache: Path) -> list[Example]:
        """What the base says to the neutral prompts that come with surgeon; kept, because saying it takes a while."""
        if not cache.exists():
            prompts = [example["prompt"] for example in neutral_examples() if "prompt" in example]
            said = answers(self.loaded.model, self.loaded.tokenizer, prompts, REPLY)
            cache.write_text(json.dumps(list(zip(prompts, said, strict=True)), indent=1))
        rows = [encode(self.loaded.tokenizer, tuple(pair)) for pair in json.loads(cache.read_text())]
        return [Example(row.ids[:-1], row.start) for row in rows]

    @torch.no_grad()
    def _yardsticks(self, rows: Sequence[Example]) -> list[Yardstick]:
        packed = [pack(batch) for batch in _batches(rows)]
        return [Yardstick(one, one.logits(self.loaded.model).log_softmax(-1)) for one in packed]


def _batches(rows: Sequence[Example]) -> list[Sequence[Example]]:
    return [rows[at : at + AT_ONCE] for at in range(0, len(rows), AT_ONCE)]


@torch.no_grad()
def _copy(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        own[name].copy_(value)
