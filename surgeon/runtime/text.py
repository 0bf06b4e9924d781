"""An example to token ids: a prompt or messages through the chat template, or plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.errors import RefusedError
from surgeon.runtime.load import Loaded

#: One of ``prompt``, ``messages`` or ``text``, and at will a ``response``: text, or token ids.
Example = Mapping[str, Any]

_KINDS = ("prompt", "messages", "text")


@dataclass(frozen=True)
class Encoded:
    """Token ids, of which the first `prompt` are the prompt's and the others a response's."""

    ids: list[int]
    prompt: int

    @property
    def response(self) -> list[int]:
        """The response's ids."""
        return self.ids[self.prompt :]


def encode(loaded: Loaded, example: Example) -> Encoded:
    """The ids of an example; messages that end with the assistant's give the response. RefusedError says why not."""
    if loaded.tokenizer is None:
        raise RefusedError(f"{loaded.folder} has no tokenizer", hint="put its tokenizer.json beside the weights")
    prompt, response = _parts(loaded, example)
    ids = [*prompt, *(_plain(loaded, response) if isinstance(response, str) else response)]
    if not prompt:
        raise RefusedError(f"nothing to read in {_short(example)}", hint="an example needs at least one token")
    limit = context(loaded)
    if len(ids) > limit:
        raise RefusedError(
            f"{_short(example)} has {len(ids)} tokens; the model's context is {limit}",
            hint="shorten it or leave it out",
        )
    return Encoded(ids, len(prompt))


def context(loaded: Loaded) -> float:
    """How many tokens the model reads at most; infinite where its config does not say."""
    return getattr(loaded.config, "max_position_embeddings", None) or math.inf


def _parts(loaded: Loaded, example: Example) -> tuple[list[int], str | Sequence[int]]:
    kinds = [kind for kind in _KINDS if kind in example]
    if len(kinds) != 1:
        found = " and ".join(kinds) or f"only {', '.join(map(repr, example)) or 'nothing'}"
        raise RefusedError(f"{_short(example)} holds {found}", hint=f"it needs exactly one of {', '.join(_KINDS)}")
    value, response = example[kinds[0]], example.get("response") or ""
    if kinds[0] == "messages":
        return _chat(loaded, *_split(value, response, example))
    if not isinstance(value, str):
        raise RefusedError(f"{_short(example)}: {kinds[0]} must be text", hint='write "' + kinds[0] + '": "…"')
    if kinds[0] == "text":
        return loaded.tokenizer(value)["input_ids"], response
    return _chat(loaded, [{"role": "user", "content": value}], response)


def _split(value: Any, response: Any, example: Example) -> tuple[list[Mapping[str, Any]], Any]:
    """The messages before the assistant's last one, which is the response unless one is given."""
    fine = (
        isinstance(value, list)
        and value
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
    )
    if not fine:
        raise RefusedError(f"{_short(example)}: messages must be a list", hint='[{"role": "user", "content": "…"}, …]')
    if value[-1]["role"] == "assistant" and not response:
        return value[:-1], value[-1]["content"]
    return value, response


def _chat(loaded: Loaded, messages: list[Mapping[str, Any]], response: Any) -> tuple[list[int], Any]:
    if not loaded.has_chats:
        raise RefusedError(
            f"{loaded.folder} has no chat template, and prompts and messages need one",
            hint='write the example as {"text": "…"}, or use the instruction-tuned model',
        )
    from jinja2 import TemplateError

    try:
        ids = loaded.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except TemplateError as error:
        raise RefusedError(f"the chat template refuses {_short({'messages': messages})}: {error}") from error
    return list(ids), response


def _plain(loaded: Loaded, text: str) -> list[int]:
    return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]


def _short(example: Any) -> str:
    text = repr(dict(example)) if isinstance(example, Mapping) else repr(example)
    return text if len(text) <= 80 else text[:79] + "…"
