"""The tokens that are measured on: prompts and answers, those not given being the model's own."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.errors import RefusedError
from surgeon.runtime.generate import answered
from surgeon.runtime.load import Loaded
from surgeon.runtime.text import Encoded, Example, encode

#: Tokens of an answer that is generated because none is given.
ANSWER = 64

#: Answers generated at a time.
_CHUNK = 32


def samples(loaded: Loaded, examples: Sequence[Example], answer: int = ANSWER) -> list[Encoded]:
    """Each example's tokens; a chat without a response gets the model's own greedy one, of `answer` tokens at most.

    A plain text stands as it is. RefusedError, with the place, for what cannot be read, and where there is nothing.
    """
    if not examples:
        raise RefusedError("there is no prompt to measure on", hint="give a file of JSON lines, some tens of them")
    found: list[Encoded] = []
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        encoded = [_encoded(loaded, example) for example in chunk]
        chats = [at for at, example in enumerate(chunk) if "text" not in example]
        replies = answered(loaded, [encoded[at] for at in chats], answer) if answer else [encoded[at] for at in chats]
        for at, reply in zip(chats, replies, strict=True):
            encoded[at] = reply
        found += encoded
    kept = [one for one in found if len(one.ids) > 1]
    if not kept:
        raise RefusedError("no prompt has a second token, and the first is not measured", hint="give longer prompts")
    return kept


def _encoded(loaded: Loaded, example: Example) -> Encoded:
    try:
        return encode(loaded, example)
    except RefusedError as error:
        error.origin = error.origin or getattr(example, "origin", None)
        raise
