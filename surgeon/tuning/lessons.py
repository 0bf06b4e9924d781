"""What a merged model is held to: what each expert says to its own prompts, and the base to neutral ones.

An expert's distribution is kept at every place of its answer as its largest log-probabilities; all other tokens count
as one more outcome, so that the divergence is a lower bound of the whole one, and nearly equal to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from blake3 import blake3
from torch import Tensor

from surgeon.directions.examples import Example
from surgeon.errors import RefusedError
from surgeon.runtime.answers import answer_logits
from surgeon.runtime.generate import continuation_ids
from surgeon.runtime.load import Loaded
from surgeon.runtime.text import Encoded, encode

#: Log-probabilities kept a place; examples read in one pass without gradients; the fewest prompts of a set; the most
#: that are held out.
KEPT, AT_ONCE, FEWEST, MEASURED = 256, 8, 4, 32


@dataclass(frozen=True, eq=False)
class Answer:
    """Token ids, at the last `count` of which what comes next is judged, and what the expert says there.

    `tokens` [count, k] are its likeliest, best first, `logs` their log-probabilities, float32.
    """

    ids: tuple[int, ...]
    tokens: Tensor
    logs: Tensor

    @property
    def row(self) -> tuple[tuple[int, ...], int]:
        """The ids, and at how many of the last of them an answer is given."""
        return self.ids, len(self.tokens)


@dataclass(frozen=True, eq=False)
class Lesson:
    """One expert's answers: those that are learned from, and those held out; `weight` is that of its loss."""

    name: str
    weight: float
    train: tuple[Answer, ...]
    held: tuple[Answer, ...]

    def batches(self, size: int, seed: int) -> Iterator[tuple[Answer, ...]]:
        """Batches without end: all answers in a random order, then again in another."""
        random, order = Random(f"{seed}/{self.name}"), list[Answer]()
        while True:
            while len(order) < size:
                order += random.sample(self.train, len(self.train))
            yield tuple(order[:size])
            del order[:size]


@dataclass(frozen=True)
class Score:
    """How a model does on a lesson: the share of prompts answered token for token as the expert, and KL in nats."""

    agreement: float
    kl: float


def split(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Examples to learn from, and a quarter (at most `MEASURED`) held out; by content, whatever the order of lines."""
    once = {_asked(example): example for example in reversed(examples)}
    ranked = [once[asked] for asked in sorted(once, key=lambda asked: blake3(asked.encode()).hexdigest())]
    count = min(max(len(ranked) // 4, 1), MEASURED)
    return ranked[count:], ranked[:count]


def check_sets(sets: Mapping[str, Sequence[Example]]) -> None:
    """Refuse sets that are too small to learn from, and prompts that two sets share."""
    seen: dict[str, str] = {}
    for name, examples in sets.items():
        if len({_asked(example) for example in examples}) < FEWEST:
            hint = "about 100 prompts a skill are usual; answers need not be given"
            raise RefusedError(f"{name} has {len(examples)} different prompts; at least {FEWEST} are needed", hint=hint)
        for example in examples:
            other = seen.setdefault(_asked(example), name)
            if other != name:
                message = f"the prompts of {other} and {name} overlap: {example.asked!r}"
                raise RefusedError(message, origin=example.origin, hint="give each prompt to one skill alone")


def _asked(example: Example) -> str:
    return Example({key: value for key, value in example.items() if key != "response"}).content


def lesson(
    loaded: Loaded, name: str, examples: Sequence[Example], weight: float, tokens: int, *, reads_texts: bool = False
) -> Lesson:
    """What the model in hand says: to examples with a response along that, else its own greedy answer.

    With `reads_texts` plain texts are no questions: the model is judged at every one of their tokens.
    """
    train, held = (tuple(answers(loaded, part, tokens, reads_texts)) for part in split(examples))
    return Lesson(name, weight, train, held)


@torch.no_grad()
def answers(loaded: Loaded, examples: Sequence[Example], tokens: int, reads_texts: bool = False) -> list[Answer]:
    """The model's answers, at most `tokens` long."""
    encoded = [encode(loaded, example) for example in examples]
    read = [reads_texts and not example.is_chat for example in examples]
    asked = [not whole and not one.response for one, whole in zip(encoded, read, strict=True)]
    prompts = [one.ids for one, open_ in zip(encoded, asked, strict=True) if open_]
    said = iter(continuation_ids(loaded, prompts, tokens))
    rows = [
        _row(one, whole, next(said) if open_ else one.response, tokens)
        for one, whole, open_ in zip(encoded, read, asked, strict=True)
    ]
    found: list[Answer] = []
    for start in range(0, len(rows), AT_ONCE):
        batch = rows[start : start + AT_ONCE]
        logs = answer_logits(loaded, batch).log_softmax(-1)
        best = logs.topk(min(KEPT, logs.shape[-1]), -1)
        counts = [count for _, count in batch]
        parts = zip(batch, best.indices.cpu().split(counts), best.values.cpu().split(counts), strict=True)
        found += [Answer(tuple(ids), indices.clone(), values.clone()) for (ids, _), indices, values in parts]
    return found


def _row(one: Encoded, whole: bool, answer: Sequence[int], tokens: int) -> tuple[list[int], int]:
    """The ids, and at how many of the last of them the model is judged: before each answered token, and after them."""
    ids = one.ids[: tokens + 1] if whole else [*one.ids[: one.prompt], *answer[:tokens]]
    return ids, len(ids) if whole else len(ids) - one.prompt + 1


def divergence(answer_tokens: Tensor, answer_logs: Tensor, logits: Tensor) -> Tensor:
    """KL(expert ‖ model) at each place, [n]: over the kept tokens and all others as one outcome."""
    kept = logits.gather(1, answer_tokens) - logits.logsumexp(1, keepdim=True)
    share = answer_logs.exp()
    told = (share * (answer_logs - kept)).sum(1)
    rest = (1 - share.sum(1)).clamp(min=1e-7)
    left = torch.log1p(-kept.exp().sum(1).clamp(max=1 - 1e-6))
    return told + rest * (rest.log() - left) if logits.shape[1] > answer_tokens.shape[1] else told


def loss(loaded: Loaded, batch: Sequence[Answer]) -> Tensor:
    """The mean divergence over the places of a batch's answers; with gradients."""
    logits = answer_logits(loaded, [answer.row for answer in batch])
    tokens, logs = (torch.cat([getattr(answer, part) for answer in batch]) for part in ("tokens", "logs"))
    return divergence(tokens.to(logits.device), logs.to(logits.device), logits).mean()


@torch.no_grad()
def score(loaded: Loaded, held: Sequence[Answer]) -> Score:
    """How the model in hand does on answers."""
    agreeing, total, places = 0, 0.0, 0
    for start in range(0, len(held), AT_ONCE):
        batch = held[start : start + AT_ONCE]
        logits = answer_logits(loaded, [answer.row for answer in batch])
        for answer, own in zip(batch, logits.split([len(answer.tokens) for answer in batch]), strict=True):
            tokens = answer.tokens.to(own.device)
            agreeing += bool((own.argmax(1) == tokens[:, 0]).all())
            total += float(divergence(tokens, answer.logs.to(own.device), own).double().sum())
            places += len(tokens)
    return Score(agreeing / max(len(held), 1), max(total / max(places, 1), 0.0))
