"""Vocabularies: joined by token, written as tokenizers that give each token its row and keep what the base says."""

import json
from typing import ClassVar

import pytest
from tokenizers import Tokenizer as Fast

from surgeon.anatomy.special_ids import with_special_ids, with_vocab_size
from surgeon.anatomy.token_rows import Joining, Owner, TokenSource
from surgeon.anatomy.tokenizer_files import extended
from surgeon.anatomy.vocabulary import Tokenizer, belongs_to_tokenizer, union, vocabulary_tensors
from surgeon.errors import MismatchError
from tests.support.tokenizer_toys import KINDS, TEXTS, bpe, words


def read(fast: Fast, label: str = "a", config: dict | None = None) -> Tokenizer:
    return Tokenizer(label, json.loads(fast.to_str()), config or {})


def joined(kind: str, further: tuple[str, ...] = ()) -> tuple[dict[str, int], Fast, tuple[Fast, Fast]]:
    one, other = KINDS[kind]
    ids = union([read(one), read(other)], further)
    made = extended(read(one), [read(one), read(other)], ids)
    return ids, Fast.from_str(json.dumps(made.data)), (one, other)


@pytest.mark.parametrize("kind", KINDS)
class TestUnion:
    def test_the_base_keeps_its_rows_and_new_ones_follow_without_gaps(self, kind: str):
        ids, _, (one, other) = joined(kind)
        base = one.get_vocab()
        assert {token: ids[token] for token in base} == base
        new = sorted(row for token, row in ids.items() if token not in base)
        assert new == list(range(len(base), len(base | other.get_vocab())))

    def test_the_written_tokenizer_has_exactly_these_rows(self, kind: str):
        ids, made, _ = joined(kind, ("<|nobody has it|>",))
        assert made.get_vocab() == ids
        assert all(made.id_to_token(row) == token for token, row in ids.items())

    def test_texts_of_words_the_base_knows_are_encoded_as_before(self, kind: str):
        _, made, (one, _) = joined(kind)
        for text in TEXTS:
            assert made.encode(text, add_special_tokens=False).ids == one.encode(text, add_special_tokens=False).ids

    def test_tokens_found_in_the_text_first_still_are(self, kind: str):
        ids, made, pair = joined(kind, ("<|new|>",))
        special = {token.content for fast in pair for token in fast.get_added_tokens_decoder().values()}
        for token in (*special, "<|new|>"):
            assert made.encode(f"cat{token}", add_special_tokens=False).ids[-1] == ids[token]

    def test_words_only_the_other_has_become_its_tokens(self, kind: str):
        ids, made, _ = joined(kind)
        for word in ("one", "sang"):
            if word in ids:
                assert made.encode(word, add_special_tokens=False).ids == [ids[word]]


def test_a_token_special_in_another_is_so_in_the_union_under_the_bases_row():
    ids = union([read(words(specials=())), read(words(("x",), ("cat",)))])
    made = extended(read(words(specials=())), [read(words(("x",), ("cat",)))], ids)
    (entry,) = made.data["added_tokens"]
    assert (entry["content"], entry["id"]) == ("cat", ids["cat"])


def test_what_tokenizer_config_lists_is_longer_too():
    base = read(bpe(), config={"added_tokens_decoder": {"0": {"content": "<s>", "special": True}}, "x": 1})
    ids = union([base], ["<|new|>"])
    listed = extended(base, [base], ids).config["added_tokens_decoder"]
    assert listed["0"] == {"content": "<s>", "special": True}
    assert listed[str(ids["<|new|>"])]["content"] == "<|new|>"


def test_merges_spelled_as_pairs_stay_pairs():
    one, other = (read(fast) for fast in KINDS["bpe"])
    texts = {**one.data, "model": {**one.data["model"], "merges": [" ".join(p) for p in one.data["model"]["merges"]]}}
    ids = union([one, other])
    pairs = extended(one, [other], ids).data["model"]["merges"]
    assert [" ".join(pair) for pair in pairs] == extended(Tokenizer("a", texts, {}), [other], ids).data["model"][
        "merges"
    ]


def test_no_vocabulary_is_told():
    with pytest.raises(MismatchError, match="holds no vocabulary"):
        _ = Tokenizer("b", {"model": {}}, {}).ids


class TestRows:
    """By brute force: every token's row, in every model, against the rules as they are written."""

    OWNERS = (
        Owner("base", {"a": 0, "b": 1, "c": 2}, 3),
        Owner("two", {"b": 0, "d": 1, "e": 2, "late": 3}, 3),
        Owner("three", {"d": 2, "f": 0}, 4),
    )
    IDS: ClassVar = {"f": 0, "e": 1, "d": 2, "c": 3, "b": 4, "a": 5, "late": 6, "nobody": 8}

    def rows(self, of: int, base: int | None = 0, *sources: TokenSource) -> list[dict[int, int]]:
        """For each row of the result the owners it is the mean of, and their rows."""
        joining = Joining(self.OWNERS, self.IDS, 9, of, base, 2, {source.token: source for source in sources})
        found = joining.rows()
        return [{part: int(index[row]) for part, index in enumerate(found) if index[row] >= 0} for row in range(9)]

    def test_own_rows_then_the_bases_then_the_owners(self):
        of_two = self.rows(1)
        assert of_two[self.IDS["b"]] == {1: 0}
        assert of_two[self.IDS["a"]] == {0: 0}
        assert of_two[self.IDS["f"]] == {2: 0}
        assert self.rows(0)[self.IDS["d"]] == {1: 1, 2: 2}

    def test_without_a_base_the_mean_of_all_owners(self):
        assert self.rows(2, None)[self.IDS["b"]] == {0: 1, 1: 0}
        assert self.rows(2, 0)[self.IDS["b"]] == {0: 1}

    def test_nobodys_is_zero_and_so_is_one_beyond_the_matrix(self):
        assert self.rows(0)[self.IDS["nobody"]] == {}
        assert self.rows(1)[self.IDS["late"]] == {}

    def test_a_row_without_a_token_is_that_of_the_tokenizers_model(self):
        joining = Joining(self.OWNERS, {"a": 0}, 3, 1, 0, 2, {})
        assert [index.tolist() for index in joining.rows()] == [[0, -1, -1], [-1, -1, -1], [-1, 1, 2]]

    def test_sources_count_where_the_token_is_missing_or_everywhere_by_force(self):
        missing = TokenSource("b", 2, "d")
        assert self.rows(2, 0, missing)[self.IDS["b"]] == {2: 2}
        assert self.rows(0, 0, missing)[self.IDS["b"]] == {0: 1}
        assert self.rows(0, 0, TokenSource("b", 2, 3, force=True))[self.IDS["b"]] == {2: 3}
        assert self.rows(0, 0, TokenSource("b", force=True))[self.IDS["b"]] == {}

    def test_sources_without_the_token_are_told_together(self):
        with pytest.raises(MismatchError) as refused:
            self.rows(0, 0, TokenSource("a", 2), TokenSource("b", 1, 77))
        assert "'a' is to come from three, which has no 'a'" in str(refused.value)
        assert "'b' is to come from two, which has no 77" in str(refused.value)


class TestConfig:
    def test_the_size_stands_where_it_stood(self):
        assert with_vocab_size({"vocab_size": 3, "x": 1}, 5) == {"vocab_size": 5, "x": 1}
        nested = {"text_config": {"vocab_size": 3, "y": 2}, "x": 1}
        assert with_vocab_size(nested, 5) == {"text_config": {"vocab_size": 5, "y": 2}, "x": 1}

    def test_ids_are_those_of_the_tokenizers_model_and_others_go_by_token(self):
        config = {"bos_token_id": 0, "eos_token_id": [1, 2], "image_token_id": 2, "video_token_id": 1, "x": 1}
        giver = {"bos_token_id": 7, "eos_token_id": 8, "pad_token_id": 9}
        changed = with_special_ids(config, giver, {"a": 0, "b": 1, "c": 2}, {"c": 5})
        assert changed == giver | {"image_token_id": 5, "video_token_id": None, "x": 1}


def test_names_whose_rows_are_tokens():
    names = [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "lm_head.bias",
        "transformer.wte.weight",
        "h.0.wte_x.weight",
    ]
    assert vocabulary_tensors(names) == tuple(names[:4])
    assert belongs_to_tokenizer("chat_template.jinja")
    assert not belongs_to_tokenizer("config.json")
