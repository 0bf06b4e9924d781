"""Which tokens of an example count: the last of the prompt, the response's, its first few, or all but the first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from surgeon.directions.examples import Example
from surgeon.errors import RefusedError
from surgeon.runtime.generate import answered
from surgeon.runtime.load import Loaded
from surgeon.runtime.text import Encoded, encode

#: Tokens of an answer that is generated because none is given.
_ANSWER = 64

#: Answers generated at a time.
_CHUNK = 32

_WORDS = re.compile(r"(last|response|mean|first)(?::(\d+))?")


@dataclass(frozen=True)
class Position:
    """``last`` (of the prompt), ``response``, ``first`` (of the response; `count` tokens) or ``mean``."""

    kind: str
    count: int = 1

    @classmethod
    def read(cls, text: str) -> Position:
        """The position that a recipe names, such as ``first:3``. RefusedError for any other word."""
        found = _WORDS.fullmatch(text)
        if found is None or (found[2] and (found[1] != "first" or int(found[2]) < 1)):
            hint = "use last, response, first:N (the first N tokens of the response) or mean"
            raise RefusedError(f"{text!r} is no position", hint=hint)
        return cls(found[1], int(found[2] or 1))

    @property
    def needs_response(self) -> bool:
        """Whether it lies in what the model answers."""
        return self.kind in ("response", "first")

    def tokens(self, encoded: Encoded) -> range:
        """The tokens it takes of an example; never the first, which is the attention's sink."""
        if self.kind == "last":
            return range(max(1, encoded.prompt - 1), encoded.prompt)
        end = len(encoded.ids) if self.kind != "first" else min(len(encoded.ids), encoded.prompt + self.count)
        return range(encoded.prompt if self.needs_response else 1, end)

    def read_until(self, encoded: Encoded) -> int:
        """How many tokens the model must read for it: nothing depends on later ones."""
        return self.tokens(encoded).stop


def encoded_examples(loaded: Loaded, examples: Sequence[Example], position: Position) -> Iterator[Encoded]:
    """Each example's tokens up to its position; answers that are needed and not given are generated greedily.

    RefusedError for an example without a token at its position.
    """
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        found = [_encoded(loaded, example) for example in chunk]
        if position.needs_response:
            found = answered(loaded, found, position.count if position.kind == "first" else _ANSWER)
        for example, encoded in zip(chunk, found, strict=True):
            if not position.tokens(encoded):
                raise _nothing(example, position)
            yield Encoded(encoded.ids[: position.read_until(encoded)], encoded.prompt)


def _encoded(loaded: Loaded, example: Example) -> Encoded:
    try:
        return encode(loaded, example)
    except RefusedError as error:
        error.origin = error.origin or example.origin
        raise


def _nothing(example: Example, position: Position) -> RefusedError:
    if position.needs_response:
        message, hint = "the model answers nothing here", "give the example a response, or use position: last"
    else:
        message, hint = "a single token: the first is left out of every mean", "give a longer text"
    return RefusedError(f"{example.asked!r}: {message}", origin=example.origin, hint=hint)
