"""Tiny tokenizers of every kind, and toy models that have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from surgeon.testing.toys import toy_llama

TEXTS = ("the cat sat on the mat", "a dog ran to the cat")
OTHERS = ("one mouse sang to the cat", "a dog sang one song")


def bpe(texts: tuple[str, ...] = TEXTS, size: int = 36, specials: tuple[str, ...] = ("<s>", "</s>")) -> Tokenizer:
    """Byte-level BPE, as GPT-2 and Llama 3 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(specials), show_progress=False)
    tokenizer.train_from_iterator(texts * 3, trainer)
    return tokenizer


def words(texts: tuple[str, ...] = TEXTS, specials: tuple[str, ...] = ("<unk>", "<s>", "</s>")) -> Tokenizer:
    """One token a word."""
    found = dict.fromkeys([*specials, *" ".join(texts).split()])
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(found)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def word_pieces(texts: tuple[str, ...] = TEXTS) -> Tokenizer:
    """WordPiece, as BERT has it."""
    letters = sorted(set("".join(texts)) - {" "})
    vocabulary = dict.fromkeys(["[UNK]", *letters, *(f"##{letter}" for letter in letters), *" ".join(texts).split()])
    held = {token: row for row, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(held, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def unigrams(texts: tuple[str, ...] = TEXTS, added: tuple[str, ...] = ()) -> Tokenizer:
    """Unigram, as T5 has it: ids are places in a list, and added tokens come after it."""
    found = dict.fromkeys(["<unk>", *sorted(set("".join(texts)) - {" "}), *" ".join(texts).split()])
    tokenizer = Tokenizer(models.Unigram([(piece, -float(len(piece) == 1) - 1.0) for piece in found], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(added))
    return tokenizer


KINDS = {
    "bpe": (bpe(), bpe(OTHERS, 38, ("<unk>", "</s>", "<s>", "<|end|>"))),
    "words": (words(), words(OTHERS, ("<s>", "<unk>", "<|end|>"))),
    "word pieces": (word_pieces(), word_pieces(OTHERS)),
    "unigrams": (unigrams(added=("<s>",)), unigrams(OTHERS, added=("<|end|>",))),
}


def with_tokenizer(folder: Path, tokenizer: Tokenizer, seed: int = 0, padding: int = 0, **config: Any) -> Path:
    """A toy model with this tokenizer, and so many rows more than it has tokens."""
    special = {f"{name}_token_id": tokenizer.token_to_id(token) for name, token in (("bos", "<s>"), ("eos", "</s>"))}
    rows = tokenizer.get_vocab_size() + padding
    given: dict[str, Any] = {"vocab_size": rows, "num_hidden_layers": 1} | special | config
    toy_llama(folder, seed, **given)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        f"{name}_token": token for name, token in (("bos", "<s>"), ("eos", "</s>")) if token in tokenizer.get_vocab()
    }
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder
