"""What an edit does to a model in hand: the manner it loses or gains, and what that costs elsewhere.

The manner's measure is the teacher-forced log-probability of the tokens the model itself says first on the positive
prompts; the cost is KL(unedited ‖ edited) in nats a token on neutral chats and text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from surgeon.measuring.manner import Answer
from surgeon.runtime.generate import continuation_ids
from surgeon.runtime.load import Loaded
from surgeon.runtime.scores import batch_distributions, batch_log_probabilities, kl
from surgeon.runtime.text import Encoded, Example, encode

#: Bytes of log-probabilities kept of the unedited model, whatever the vocabulary.
_KEPT = 160_000_000
_AT_ONCE = 8


@dataclass(frozen=True)
class Spoken:
    """Prompts with the first tokens of what the model says, [prompt + answer] each."""

    encoded: tuple[Encoded, ...]

    def log_probability(self, loaded: Loaded) -> float:
        """The mean over prompts of the summed log p of the answer's tokens, in nats."""
        found = [value for batch in _batches(self.encoded) for value in batch_log_probabilities(loaded, batch)]
        return sum(float(value.sum()) for value in found) / max(len(found), 1)


def spoken(loaded: Loaded, examples: Sequence[Example], answers: Sequence[Answer], tokens: int = 4) -> Spoken:
    """The examples followed by the first tokens of their answers."""
    found = []
    for example, answer in zip(examples, answers, strict=True):
        whole = encode(loaded, example)
        prompt = whole.ids[: whole.prompt]
        if answer.ids:
            found.append(Encoded([*prompt, *answer.ids[:tokens]], len(prompt)))
    return Spoken(tuple(found))


def answers(loaded: Loaded, examples: Sequence[Example], tokens: int) -> list[Answer]:
    """What the model says to each example, greedily: token ids and text."""
    prompts = [(one.ids[: one.prompt]) for one in (encode(loaded, example) for example in examples)]
    found = continuation_ids(loaded, prompts, tokens)
    return [Answer(tuple(ids), loaded.tokenizer.decode(ids, skip_special_tokens=True)) for ids in found]


@dataclass(frozen=True)
class Neutral:
    """What the unedited model predicts on neutral examples: the yardstick of an edit's cost."""

    encoded: tuple[Encoded, ...]
    before: tuple[Tensor, ...]

    def cost(self, loaded: Loaded) -> float:
        """KL(unedited ‖ edited), mean nats a token."""
        total, count, before = 0.0, 0, iter(self.before)
        for batch in _batches(self.encoded):
            for after, one in zip(batch_distributions(loaded, batch), before, strict=False):
                total += kl(one, after[-len(one) :]) * len(one)
                count += len(one)
        return total / max(count, 1)


def neutral(loaded: Loaded, examples: Sequence[Example], tokens: int = 64) -> Neutral:
    """Measure the unedited model; of each example at most `tokens`, and fewer where the vocabulary is large."""
    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]
    room = max(_KEPT // (4 * vocabulary * max(len(examples), 1)), 4)
    encoded: list[Encoded] = []
    before: list[Tensor] = []
    for example in examples:
        whole = encode(loaded, example)
        one = Encoded(whole.ids[: tokens + 1], min(whole.prompt, tokens + 1))
        if len(one.ids) > 1:
            encoded.append(one)
    encoded.sort(key=lambda one: len(one.ids))
    for batch in _batches(encoded):
        before += [table[-room:].clone() for table in batch_distributions(loaded, batch)]
    return Neutral(tuple(encoded), tuple(before))


def _batches(encoded: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
    """Runs of examples that are read in one pass."""
    for start in range(0, len(encoded), _AT_ONCE):
        yield encoded[start : start + _AT_ONCE]
