"""A fast tokenizer with more tokens: tokenizer.json and tokenizer_config.json edited as data, never saved anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from surgeon.anatomy.vocabulary import Tokenizer
from surgeon.errors import MismatchError

_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


def extended(base: Tokenizer, others: Sequence[Tokenizer], ids: Mapping[str, int]) -> Tokenizer:
    """The base's tokenizer with every token of `ids`, which keeps the base's own rows.

    What another tokenizer finds in the text first (special tokens, say) is found first here too; its other tokens join
    the vocabulary, and for BPE the merges that lead to them come after the base's own: what the base's merges say of a
    text stands, but for words that are one of the new tokens. Tokens that nobody has are found in the text first.
    """
    data = deepcopy(dict(base.data))
    entries = _added(base, others, ids)
    data["added_tokens"] = sorted([*base.added, *entries], key=lambda entry: entry["id"])
    first = {entry["content"] for entry in data["added_tokens"]}
    inner = {token: row for token, row in ids.items() if token not in base.ids and token not in first}
    if inner:
        # Ids of added tokens that the model does not have are given out after its last one.
        inner |= {entry["content"]: entry["id"] for entry in data["added_tokens"]}
        _grow(data["model"], inner, others, base.label)
        _merge(data["model"], others, {token for token in inner if token not in base.ids})
    return Tokenizer(base.label, data, _config(base.config, entries))


def _added(base: Tokenizer, others: Sequence[Tokenizer], ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """The entries of further tokens that are found first, each with its id here."""
    found = {entry["content"]: None for entry in base.added}
    entries = []
    known = {token for one in (base, *others) for token in one.ids}
    nobodys = [{**_PLAIN, "content": token} for token in ids if token not in known]
    for entry in [*(entry for other in others for entry in other.added), *nobodys]:
        if entry["content"] in ids and entry["content"] not in found:
            found[entry["content"]] = None
            entries.append({"id": ids[entry["content"]], **{k: v for k, v in entry.items() if k != "id"}})
    return entries


def _grow(model: dict[str, Any], tokens: Mapping[str, int], others: Sequence[Tokenizer], label: str) -> None:
    """Put tokens into the model's vocabulary, under their ids."""
    if isinstance(model["vocab"], Mapping):
        model["vocab"] = {**model["vocab"], **tokens}
        return
    # A Unigram model's ids are places in a list; a token's score is its owner's.
    scores = {entry[0]: entry[1] for other in others for entry in _entries(other)}
    lowest = min((entry[1] for entry in model["vocab"]), default=0.0)
    places = {row: token for token, row in tokens.items() if row >= len(model["vocab"])}
    for row in range(len(model["vocab"]), 1 + max(places, default=-1)):
        if row not in places:
            raise MismatchError(f"{label}: no token has the id {row}, and this tokenizer's vocabulary has no gaps")
        model["vocab"].append([places[row], scores.get(places[row], lowest)])


def _entries(tokenizer: Tokenizer) -> Sequence[Any]:
    held = tokenizer.data["model"]["vocab"]
    return () if isinstance(held, Mapping) else held


def _merge(model: dict[str, Any], others: Sequence[Tokenizer], new: set[str]) -> None:
    """Append the merges of the others that lead to new tokens."""
    if "merges" not in model:
        return
    vocabulary, pairs = model["vocab"], list(_pairs(model))
    seen = set(pairs)
    for pair in (pair for other in others for pair in _pairs(other.data["model"])):
        if pair not in seen and "".join(pair) in new and pair[0] in vocabulary and pair[1] in vocabulary:
            seen.add(pair)
            pairs.append(pair)
    model["ignore_merges"] = True  # a word that is a token is that token, whichever merges come first
    texts = all(isinstance(pair, str) for pair in model["merges"]) and not any(" " in "".join(pair) for pair in pairs)
    model["merges"] = [" ".join(pair) if texts else list(pair) for pair in pairs]


def _pairs(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for pair in model.get("merges", ()):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        yield left, right


def _config(config: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """tokenizer_config.json, where it lists the tokens that are found first, with the further ones."""
    if "added_tokens_decoder" not in config:
        return dict(config)
    further = {str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in entries}
    return {**config, "added_tokens_decoder": {**config["added_tokens_decoder"], **further}}
