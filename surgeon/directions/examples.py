"""Examples on disk: a line {"prompt": …}, {"messages": […]} or {"text": …}, each with an optional "response"."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from surgeon.errors import Origin, RefusedError, nearest

KINDS = ("prompt", "messages", "text")
_KEYS = (*KINDS, "response")
_HINT = 'a line is {"prompt": "…"}, {"messages": [{"role": "user", "content": "…"}]} or {"text": "…"}'


class Example(Mapping[str, Any]):
    """One line as it was read: equal to any mapping that holds the same. `origin` is where it stood."""

    def __init__(self, values: Mapping[str, Any], origin: Origin | None = None) -> None:
        self._values = dict(values)
        self.origin = origin

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(self.content)

    def __repr__(self) -> str:
        return f"Example({self._values!r})"

    @property
    def is_chat(self) -> bool:
        """Whether a chat template is put around it."""
        return "text" not in self

    @property
    def spoken(self) -> tuple[str, ...]:
        """Roles and contents before the response, or the text."""
        if "messages" in self:
            return tuple(message[key] for message in self["messages"] for key in ("role", "content"))
        return ("user", self["prompt"]) if self.is_chat else (self["text"],)

    @property
    def asked(self) -> str:
        """What comes before the response, as one text without roles."""
        return "\n".join(self.spoken[1::2] if self.is_chat else self.spoken)

    @cached_property
    def content(self) -> str:
        """All that it holds in one line, the same for texts that differ in case, spacing or form of Unicode only."""
        return json.dumps([_normal(part) for part in (*self.spoken, self.get("response", ""))], ensure_ascii=False)


def read_examples(path: Path, *, mixed: bool = False) -> tuple[Example, ...]:
    """The examples of a file of JSON lines; `mixed` lets chats and plain texts stand in one file.

    RefusedError with file:line for what is no example.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise RefusedError(f"{path}: not UTF-8 at byte {error.start}", hint="save the file as UTF-8") from None
    except OSError as error:
        raise RefusedError(f"{path}: {error.strerror or error}", hint="check that the file is there") from None
    found = [_example(line, Origin(str(path), at)) for at, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise RefusedError(f"{path}: the file holds no examples", hint=_HINT)
    for example in found:
        if not mixed and example.is_chat != found[0].is_chat:
            message = f"chats and plain texts are mixed: {found[0].origin} is of the other kind"
            hint = "keep chats and texts in files of their own"
            raise RefusedError(message, origin=example.origin, hint=hint)
    return tuple(found)


def neutral_examples(chats: bool = True) -> tuple[Example, ...]:
    """The neutral set that comes with the package: short chats and texts on everyday subjects.

    For a model without a chat template (`chats` false) the chats are texts too.
    """
    found = read_examples(Path(__file__).parent / "data" / "neutral.jsonl", mixed=True)
    return found if chats else tuple(Example({"text": example.asked}, example.origin) for example in found)


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _example(line: str, origin: Origin) -> Example:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise RefusedError(f"not JSON: {error}", origin=origin, hint=_HINT) from None
    if not isinstance(value, dict):
        raise RefusedError(f"expected a JSON object, found {type(value).__name__}", origin=origin, hint=_HINT)
    if unknown := [key for key in value if key not in _KEYS]:
        raise RefusedError(f"unknown key {unknown[0]!r}", origin=origin, hint=nearest(unknown[0], _KEYS))
    kinds = [key for key in KINDS if key in value]
    if len(kinds) != 1:
        held = " and ".join(kinds) or "none of them"
        raise RefusedError(f"one of prompt, messages and text is needed, found {held}", origin=origin, hint=_HINT)
    return _checked(kinds[0], value, origin)


def _checked(kind: str, value: Mapping[str, Any], origin: Origin) -> Example:
    response = value.get("response")
    if "response" in value and not _is_text(response):
        raise RefusedError("response must be a text that is not empty", origin=origin, hint=_HINT)
    given = {} if response is None else {"response": response}
    if kind != "messages":
        if not _is_text(value[kind]):
            raise RefusedError(f"{kind} must be a text that is not empty", origin=origin, hint=_HINT)
        return Example({kind: value[kind]} | given, origin)
    messages = value["messages"]
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise RefusedError("messages must be a list of {role, content}", origin=origin, hint=_HINT)
    if messages[-1]["role"] == "assistant":
        if given or len(messages) == 1:
            hint = "end with a user's message; the answer is the response"
            raise RefusedError("the messages end with the assistant's", origin=origin, hint=hint)
        messages, given = messages[:-1], {"response": messages[-1]["content"]}
    return Example({"messages": messages} | given, origin)


def _is_text(value: Any) -> bool:
    whole = isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
    return whole and bool(value.strip())


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"role", "content"}
        and isinstance(value["role"], str)
        and _is_text(value["content"])
    )
