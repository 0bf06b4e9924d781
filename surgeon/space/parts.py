"""Settings of a reshape that name its parts: a recipe writes names, an expression holds the parts' numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from surgeon.anatomy.token_rows import TokenSource

#: What a recipe may write for the first of the models, where none has this name.
BASE = "base"


@dataclass(frozen=True)
class PartNumber:
    """A part, by the number of the first that is this model."""

    spelled: ClassVar[str] = "a model"

    number: int


@dataclass(frozen=True)
class TokenSources:
    """Where the rows of single tokens come from, in the order of the tokens."""

    spelled: ClassVar[str] = "sources by token"

    sources: tuple[TokenSource, ...]


def base_of(parts: Sequence[int]) -> int:
    """The number of the first of the models that are joined, by those of all parts: `of`, then `with`.

    The order is that of `with` where `of` is in it too, else `of` comes first.
    """
    first, *further = parts
    return further[0] if first in further else first


def token_sources(tokens: Mapping[str, Mapping[str, Any]], number: Callable[[Any], int]) -> TokenSources:
    """What ``{TOKEN: {source: MODEL | {kind: …}, force: …}}`` means; `number` tells that of a part."""
    found = []
    for token, about in sorted(tokens.items()):
        source, force = about["source"], bool(about.get("force"))
        if not isinstance(source, Mapping):
            found.append(TokenSource(token, number(source), force=force))
        elif source["kind"] == "zero":
            found.append(TokenSource(token, force=force))
        else:
            other = source.get("token") if source.get("token") is not None else source["token_id"]
            found.append(TokenSource(token, number(source["model"]), other, force))
    return TokenSources(tuple(found))


def token_data(tokens: TokenSources, name: Callable[[int], Any]) -> dict[str, Any]:
    """The same as a recipe writes it."""
    found: dict[str, Any] = {}
    for one in tokens.sources:
        if one.part is None:
            source: Any = {"kind": "zero"}
        elif one.other is None:
            source = name(one.part)
        else:
            key = "token" if isinstance(one.other, str) else "token_id"
            source = {"kind": "model_token", "model": name(one.part), key: one.other}
        found[one.token] = {"source": source} | ({"force": True} if one.force else {})
    return found
