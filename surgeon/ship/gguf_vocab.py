"""A tokenizer as llama.cpp has it: byte-level BPE by its way of cutting text, or SentencePiece by scores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import RefusedError
from surgeon.store.json_files import read_object

if TYPE_CHECKING:
    from gguf import GGUFWriter

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: How text is cut before BPE → what llama.cpp calls it.
_CUTS = {
    "bytes": "gpt-2",
    "digits bytes": "smollm",
    f"{_WORDS % '{1,3}'} plain": "llama-bpe",
    f"{_WORDS % ''} plain": "qwen2",
}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTES = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Vocab:
    """Tokens by id with their kinds; `scores` of SentencePiece, or `cut` of byte-level BPE."""

    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    cut: str
    space_prefix: bool

    def add_to(self, writer: GGUFWriter, folder: Path) -> None:
        """Write it with special ids, merges and chat template."""
        from gguf import SpecialVocab

        writer.add_tokenizer_model("gpt2" if self.cut else "llama")
        writer.add_tokenizer_pre(self.cut or "default")
        writer.add_token_list(self.tokens)
        if not self.cut:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_prefix)
        writer.add_token_types(self.kinds)
        special = SpecialVocab(folder, load_merges=bool(self.cut), n_vocab=len(self.tokens))
        special.add_special_token.setdefault("bos", False)
        special.add_to_gguf(writer, quiet=True)


def read_vocab(folder: Path, rows: int) -> Vocab:
    """The tokenizer of a folder, with so many rows in the model. RefusedError names a kind that is not written."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise RefusedError(f"{folder} holds no tokenizer.json", hint="a GGUF file holds the tokenizer: put it there")
    content = read_object(path)
    model, added = content.get("model") or {}, content.get("added_tokens") or []
    if model.get("type") != "BPE":
        kind = model.get("type")
        raise RefusedError(f"{path}: a tokenizer of the kind {kind!r} is not written as GGUF", hint="BPE kinds are")
    last = max((*model["vocab"].values(), *(one["id"] for one in added)), default=0)
    if last >= rows:
        raise RefusedError(f"{path} has a token {last} and the model {rows} rows", hint="reshape: vocab gives it rows")
    tokens, kinds = [f"[PAD{number}]" for number in range(rows)], [_UNUSED] * rows
    for token, number in model["vocab"].items():
        unknown = token == model.get("unk_token")
        tokens[number] = token
        kinds[number] = _UNKNOWN if unknown else _BYTES if _BYTE.fullmatch(token) else _NORMAL
    for one in added:
        unknown = one["content"] == model.get("unk_token") and model.get("byte_fallback")
        tokens[one["id"]] = one["content"]
        kinds[one["id"]] = _UNKNOWN if unknown else _CONTROL if one.get("special") else _USER
    if model.get("byte_fallback"):
        return Vocab(tokens, kinds, _scores(model, tokens), "", _space_prefix(content))
    return Vocab(tokens, kinds, [], _cut(content, path), False)


def _scores(model: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """Minus the rank of the first merge that gives a token: SentencePiece joins the pair of the highest score first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        pair = merge if isinstance(merge, list) else merge.split(" ", 1)
        ranks.setdefault("".join(pair), rank)
    return [float(-ranks.get(token, len(ranks))) for token in tokens]


def _space_prefix(content: Mapping[str, Any]) -> bool:
    """Whether a space is put before the text."""
    parts = [*_parts(content.get("normalizer"), "normalizers"), *_parts(content.get("pre_tokenizer"), "pretokenizers")]
    return any(
        one["type"] == "Prepend" or (one["type"] == "Metaspace" and one.get("prepend_scheme", "always") != "never")
        for one in parts
    )


def _cut(content: Mapping[str, Any], path: Path) -> str:
    words = []
    for one in _parts(content.get("pre_tokenizer"), "pretokenizers"):
        pattern = (one.get("pattern") or {}).get("Regex")
        known = {"ByteLevel": "bytes" if one.get("use_regex", True) else "plain", "Split": pattern, "Digits": "digits"}
        words.append(str(known.get(one["type"], one["type"])))
    cut = _CUTS.get(" ".join(words))
    if cut is None:
        raise RefusedError(
            f"{path}: no name in llama.cpp is known for how it cuts text before BPE: {' then '.join(words)[:200]}",
            hint=f"known are those of {', '.join(_CUTS.values())}",
        )
    return cut


def _parts(part: Mapping[str, Any] | None, several: str) -> list[Mapping[str, Any]]:
    """A normalizer's or pre-tokenizer's steps."""
    return [] if part is None else list(part[several]) if part.get("type") == "Sequence" else [part]
