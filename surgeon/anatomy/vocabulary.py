"""Vocabularies: which token is which row, read from a fast tokenizer's files as parsed, and joined from several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from surgeon.anatomy.family import families
from surgeon.errors import MismatchError

#: Tensors whose first axis is the vocabulary, beside what families declare: the usual names, behind any prefix.
NAMES = (
    "embed_tokens.weight", "lm_head.weight", "lm_head.bias", "wte.weight", "word_embeddings.weight",
    "tok_embeddings.weight", "gpt_neox.embed_in.weight", "embed_out.weight", "shared.weight", "proj_out.weight",
    "backbone.embeddings.weight", "embed_tokens_per_layer.weight", "lm_head.decoder.weight", "lm_head.decoder.bias",
    "cls.predictions.bias", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias",
)  # fmt: skip

#: A tokenizer's files, beside `tokenizer.json`; those in the second row spell the vocabulary once more.
COMPANIONS = (
    "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
SPELLINGS = (
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip


def belongs_to_tokenizer(name: str) -> bool:
    """Whether a side file is part of the tokenizer."""
    return any(fnmatchcase(name, known) for known in ("tokenizer.json", *COMPANIONS, *SPELLINGS))


def vocabulary_tensors(names: Iterable[str]) -> tuple[str, ...]:
    """Those of these tensors whose first axis is the vocabulary, by their declared names."""
    declared = (name for family in families().values() for name in (family.embed, family.unembed))
    known = {*NAMES, *(name.replace("{trunk}", "") for name in declared)}
    return tuple(name for name in names if name in known or name.endswith(tuple(f".{one}" for one in known)))


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A fast tokenizer: `data` is its tokenizer.json, `config` its tokenizer_config.json, both as parsed."""

    label: str
    data: Mapping[str, Any]
    config: Mapping[str, Any]

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Every token's row. MismatchError where tokenizer.json holds no vocabulary."""
        held = self.data.get("model", {}).get("vocab")
        if isinstance(held, Mapping):
            found = dict(held)
        elif isinstance(held, Sequence) and not isinstance(held, str):
            found = {entry[0]: number for number, entry in enumerate(held)}
        else:
            raise MismatchError(f"{self.label}: its tokenizer.json holds no vocabulary (model.vocab)")
        for entry in self.added:
            found.setdefault(entry["content"], entry["id"])
        return found

    @property
    def added(self) -> Sequence[Mapping[str, Any]]:
        """The tokens that are found in the text first, special ones among them."""
        return self.data.get("added_tokens") or ()

    @property
    def size(self) -> int:
        """One more than the last row."""
        return 1 + max(self.ids.values(), default=-1)


def union(tokenizers: Sequence[Tokenizer], further: Iterable[str] = ()) -> dict[str, int]:
    """The rows of all tokens: the first tokenizer's as they are, then new ones in the order of the others' rows.

    `further` are tokens that no tokenizer need have; they come last.
    """
    first, *others = tokenizers
    ids = dict(first.ids)
    row = first.size
    for token in [*(token for other in others for token in sorted(other.ids, key=other.ids.__getitem__)), *further]:
        if token not in ids:
            ids[token] = row
            row += 1
    return ids
