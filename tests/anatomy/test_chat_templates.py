"""Chat templates by name give the published formats."""

import pytest
from jinja2 import Environment

from surgeon.anatomy.chat_templates import TEMPLATES, check_template, template, template_files
from surgeon.errors import RefusedError

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
GIVEN = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
        "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama3": (
        "<B><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>"
        "\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "<B>[INST] Be brief.\n\nHi [/INST] Hello<E>[INST] Bye [/INST]",
    "alpaca": ("Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye\n\n### Response:\n"),
    "exaone": (
        "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n[|user|]Bye\n[|assistant|]"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_gives_its_format(name: str):
    made = Environment().from_string(TEMPLATES[name])
    assert made.render(messages=TALK, bos_token="<B>", eos_token="<E>", add_generation_prompt=True) == GIVEN[name]


def test_auto_is_what_most_models_have():
    assert template("auto", ["x", "y", "y"]) == "y"
    assert template("auto", ["x", "y"]) == "x"
    assert template("{{ own }}", []) == "{{ own }}"
    with pytest.raises(RefusedError, match="none of the models has a chat template"):
        template("auto", [])


def test_an_unknown_name_is_refused():
    assert check_template("{{ own }}") == "{{ own }}"
    with pytest.raises(RefusedError) as refused:
        check_template("chatlm")
    assert "did you mean 'chatml'" in str(refused.value)


def test_it_is_written_where_the_model_has_one():
    assert template_files("t", {"chat_template": "o", "a": 1}, has_file=False) == {
        "tokenizer_config.json": {"chat_template": "t", "a": 1}
    }
    assert template_files("t", {"a": 1}, has_file=True) == {"chat_template.jinja": "t"}
    assert template_files("t", None, has_file=False) == {"chat_template.jinja": "t"}
    assert set(template_files("t", {"chat_template": "o"}, has_file=True)) == {
        "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
