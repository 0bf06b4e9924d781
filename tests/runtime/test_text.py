"""Examples to token ids, and what is said of those that make none."""

import pytest

from surgeon.errors import RefusedError
from surgeon.runtime.load import load
from surgeon.runtime.text import encode
from surgeon.testing.toys import toy_llama
from tests.support.tokens import WORDS, write_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_tokenizer(toy_llama(tmp_path_factory.mktemp("toy") / "model")), device="cpu")


def words(encoded):
    return [WORDS[index] for index in encoded.ids]


def test_a_prompt_is_the_users_message(model):
    found = encode(model, {"prompt": "one two"})
    assert words(found) == ["<user>", "one", "two", "<end>", "<assistant>"]
    assert found.prompt == len(found.ids)
    assert encode(model, {"messages": [{"role": "user", "content": "one two"}]}) == found


def test_a_text_gets_no_template(model):
    assert words(encode(model, {"text": "one two"})) == ["<bos>", "one", "two"]


def test_a_response_stands_behind_the_prompt(model):
    found = encode(model, {"prompt": "one", "response": "two three"})
    assert words(found)[found.prompt :] == ["two", "three"] == [WORDS[index] for index in found.response]
    assert encode(model, {"prompt": "one", "response": found.response}) == found
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two three"}]
    assert encode(model, {"messages": messages}) == found


def test_messages_keep_their_roles(model):
    messages = [{"role": "system", "content": "four"}, {"role": "user", "content": "one"}]
    assert words(encode(model, {"messages": messages}))[:4] == ["<system>", "four", "<end>", "<user>"]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({}, "nothing"),
        ({"promt": "one"}, "only 'promt'\n  next: it needs exactly one of prompt, messages, text"),
        ({"prompt": "one", "text": "two"}, "prompt and text"),
        ({"prompt": 5}, "prompt must be text"),
        ({"messages": "one"}, "messages must be a list"),
        ({"messages": [{"role": "user"}]}, "messages must be a list"),
        ({"messages": [{"role": "robot", "content": "one"}]}, "no robots"),
        ({"text": "one " * 70}, "has 71 tokens; the model's context is 64"),
        ({"prompt": "one", "response": "two " * 62}, "has 66 tokens"),
    ],
)
def test_what_is_wrong_is_said(model, example, message):
    with pytest.raises(RefusedError) as error:
        encode(model, example)
    assert message in str(error.value)
    assert len(str(error.value)) < 400


def test_without_a_template_text_still_works(tmp_path):
    model = load(write_tokenizer(toy_llama(tmp_path / "toy"), template=None), device="cpu")
    assert words(encode(model, {"text": "one"})) == ["<bos>", "one"]
    with pytest.raises(RefusedError, match="no chat template"):
        encode(model, {"prompt": "one"})


def test_without_a_tokenizer(tmp_path):
    model = load(toy_llama(tmp_path / "toy"), device="cpu")
    assert model.tokenizer is None
    with pytest.raises(RefusedError, match=r"no tokenizer\n  next: .*tokenizer\.json"):
        encode(model, {"text": "one"})
