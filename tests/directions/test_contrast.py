"""Contrast sets: what is read, what is refused, and how they are split."""

import json
import random

import pytest

from surgeon.directions.contrast import Contrast, split
from surgeon.directions.examples import Example, read_examples
from surgeon.directions.topics import topics
from surgeon.errors import RefusedError

TOPICS = "volcano bakery violin penguin glacier harbour bicycle orchid compass telescope beaver marzipan".split()
ASKS = ["How did the {} get its name?", "Tell me a story with a {}.", "What does one need a {} for?"]


def prompts(*texts):
    return tuple(Example({"prompt": text}) for text in texts)


def french(count=12):
    asked = [ASKS[at % 3].format(word) for at, word in enumerate(TOPICS[:count])]
    return Contrast(prompts(*(f"{text} Answer in French." for text in asked)), prompts(*asked))


def written(tmp_path, *lines):
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_reading(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    answer = {"role": "assistant", "content": "Hi"}
    path = written(tmp_path, {"prompt": "a\u2028b", "response": "c"}, "", {"messages": [*chat, answer]})
    first, second = read_examples(path)
    assert dict(first) == {"prompt": "a\u2028b", "response": "c"}
    assert dict(second) == {"messages": chat, "response": "Hi"}
    assert str(second.origin) == f"{path}:3"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no examples"),
        (["", "  "], "holds no examples"),
        ([{"prompt": "a"}, "{oops"], ":2: not JSON"),
        (["[1]"], ":1: expected a JSON object, found list"),
        ([{"prompt": "a"}, {"promt": "b"}], r":2: unknown key 'promt'\n.*did you mean 'prompt'"),
        ([{"prompt": "a", "text": "b"}], ":1: one of prompt, messages and text is needed, found prompt and text"),
        ([{"response": "a"}], ":1: one of prompt, messages and text is needed"),
        ([{"prompt": " "}], ":1: prompt must be a text"),
        ([{"text": 3}], ":1: text must be a text"),
        ([{"prompt": "a", "response": ""}], ":1: response must be"),
        ([{"messages": []}], ":1: messages must be a list"),
        ([{"messages": [{"role": "user"}]}], ":1: messages must be a list"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], ":1: the messages end with the assistant's"),
        ([{"prompt": "a"}, {"text": "b"}], ":2: chats and plain texts are mixed"),
    ],
)
def test_what_is_no_set(tmp_path, lines, message):
    with pytest.raises(RefusedError, match=message):
        read_examples(written(tmp_path, *lines))


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(RefusedError, match="No such file"):
        read_examples(tmp_path / "missing.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(RefusedError, match="not UTF-8"):
        read_examples(tmp_path / "bytes.jsonl")


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ((), (), "empty"),
        (prompts("a"), (), "one-sided: 1 positive and 0 negative"),
        ((), prompts("a"), "one-sided"),
        (prompts("a", "b"), prompts("B ", "a"), "are the same"),
        (prompts("a", "b", "c"), prompts("d", " B", "c"), r"2 examples are in both sets: 'b'.*; 'c'"),
        (prompts("a"), (Example({"text": "b"}),), "chats, the other plain texts"),
    ],
)
def test_sets_that_show_nothing(positive, negative, message):
    with pytest.raises(RefusedError, match=message):
        Contrast(positive, negative)


def test_the_same_question_answered_in_two_ways_is_a_contrast():
    left, right = (Example({"prompt": "a", "response": answer}) for answer in ("yes", "no"))
    Contrast((left,), (right,))


def test_splitting_is_a_partition_that_keeps_topics_together():
    contrast = french()
    train, held = split(contrast)
    for name in ("positive", "negative"):
        whole, parts = getattr(contrast, name), [getattr(part, name) for part in (train, held)]
        assert sorted(one.content for one in whole) == sorted(one.content for part in parts for one in part)
        assert len(parts[1]) == 3
    instruction = " answer in french."
    asked = {one["prompt"].casefold().removesuffix(instruction) for one in held.positive}
    assert asked == {one["prompt"].casefold() for one in held.negative}


def test_splitting_looks_at_content_not_at_order():
    contrast = french()
    sides = [list(contrast.positive), list(contrast.negative)]
    for seed in range(5):
        for side in sides:
            random.Random(seed).shuffle(side)
        turned = Contrast(*map(tuple, sides))
        assert turned.data_hash == contrast.data_hash
        for before, after in zip(split(contrast), split(turned), strict=True):
            assert set(before.positive) == set(after.positive)
            assert set(before.negative) == set(after.negative)


def test_the_split_does_not_change_from_version_to_version():
    held = split(french())[1]
    assert sorted(word for word in TOPICS if any(word in one["prompt"] for one in held.negative)) == EXPECTED


EXPECTED = ["bicycle", "harbour", "volcano"]


def test_the_hash_knows_the_sides_and_the_content():
    contrast = french()
    assert Contrast(contrast.negative, contrast.positive).data_hash != contrast.data_hash
    assert french(11).data_hash != contrast.data_hash


def test_sets_that_cannot_be_split():
    with pytest.raises(RefusedError, match="cannot be split"):
        split(Contrast(prompts("a b"), prompts("c d")))
    alike = [f"{word} of the old harbour town" for word in ("one", "two", "six")]
    with pytest.raises(RefusedError, match="held-out share"):
        split(french(), 1.0)
    assert len(topics([*alike, *(f"{text} in French" for text in alike)])) == 3


def test_topics_of_texts_without_spaces():
    groups = topics(["富士山の高さは", "富士山の高さは フランス語で", "東京の人口は", "東京の人口は フランス語で"])
    assert groups == [[0, 1], [2, 3]]


def test_many_examples_of_one_template_stay_apart():
    texts = [f"What is the capital of country number {number}?" for number in range(300)]
    assert len(topics([*texts, *(f"{text} Answer in French." for text in texts)])) == 300
