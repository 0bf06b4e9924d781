"""mergekit's `tokenizer_source`, `tokenizer` and `chat_template`: each model is brought to the vocabulary first."""

import pytest

import surgeon
from surgeon.space.expr import Expr, Model, Reshape

A, B, C = Model("o/a"), Model("o/b"), Model("o/c")
LINEAR = "merge_method: linear\nmodels: [{model: o/a}, {model: o/b}]\nparameters: {weight: 1}\n"
TIES = LINEAR.replace("linear", "ties") + "base_model: o/c\n"


def vocab(of: Expr, *order: Expr, **settings) -> Reshape:
    return surgeon.reshape("vocab", of, *order, **settings)


@pytest.mark.parametrize("text", ["tokenizer_source: union", "tokenizer: {}", "tokenizer: {source: union}"])
def test_union_counts_the_base_first(read, text):
    if text == "tokenizer: {}":
        text = "tokenizer: {pad_to_multiple_of: 1}"
    given = {"pad_to_multiple_of": 1} if "pad" in text else {}
    merged = read(TIES + text).recipe.expr
    assert merged.base_model == vocab(C, C, A, B, **given)
    assert [member.of for member in merged.members] == [vocab(A, C, A, B, **given), vocab(B, C, A, B, **given)]


def test_without_a_base_missing_tokens_take_the_mean(read):
    merged = read(LINEAR + "tokenizer_source: union").recipe.expr
    assert [member.of for member in merged.members] == [vocab(of, A, B, missing="mean") for of in (A, B)]


def test_a_base_that_the_method_ignores_counts_first_and_gives_the_files(read):
    loaded = read(LINEAR + "base_model: o/b\ntokenizer_source: base")
    assert [member.of for member in loaded.recipe.expr.members] == [vocab(of, B, A, tokenizer=B) for of in (A, B)]
    assert loaded.recipe.output.files_from == vocab(B, B, A, tokenizer=B)


@pytest.mark.parametrize("ref", ["o/b", "{model: {path: o/b}}"])
def test_the_tokenizer_of_a_model(read, ref):
    merged = read(TIES + f"tokenizer: {{source: {ref}}}").recipe.expr
    assert merged.members[0].of == vocab(A, C, A, B, tokenizer=B)


def test_a_tokenizer_of_a_model_that_is_not_merged(read):
    merged = read(TIES + "tokenizer_source: o/d").recipe.expr
    assert merged.members[0].of == vocab(A, C, A, B, Model("o/d"), tokenizer=Model("o/d"))


def test_sources_of_tokens(read):
    loaded = read(
        TIES + "tokenizer:\n  tokens:\n    x: {source: o/b, force: true}\n    y: {source: {kind: zero}}\n"
        "    z: {source: {kind: model_token, model: o/a, token_id: 3}}\n"
        "    w: {source: {kind: model_token, model: {model: {path: o/a}}, token: x}}\n"
    )
    tokens = {
        "x": {"source": B, "force": True}, "y": {"source": {"kind": "zero"}},
        "z": {"source": {"kind": "model_token", "model": A, "token_id": 3}},
        "w": {"source": {"kind": "model_token", "model": A, "token": "x"}},
    }  # fmt: skip
    assert loaded.recipe.expr.members[1].of == vocab(B, C, A, B, tokens=tokens)


def test_an_adapter_goes_with_its_model(read):
    merged = read(TIES.replace("o/a", "o/a+o/l") + "tokenizer_source: base").recipe.expr
    assert merged.members[0].of == vocab(A + Model("o/l"), C, A + Model("o/l"), B, tokenizer=C)


@pytest.mark.parametrize("template", ["auto", "chatml", "'{{ own }}'"])
def test_chat_template(read, template):
    assert read(LINEAR + f"chat_template: {template}").recipe.output.chat_template == template.strip("'")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("tokenizer_source: union\ntokenizer: {source: union}", 4, "say the same thing"),
        ("tokenizer_source: base", 4, "tokenizer: base needs a base_model"),
        ("tokenizer: {sorce: union}", 4, "did you mean 'source'"),
        ("tokenizer: {tokens: [x]}", 4, "tokens is a mapping of tokens, not a list"),
        ("tokenizer: {tokens: {x: {}}}", 4, "this has none"),
        ("tokenizer: {tokens: {x: {source: o/a, forse: true}}}", 4, "did you mean 'force'"),
        ("tokenizer: {tokens: {x: {source: {kind: zeros}}}}", 4, "did you mean 'zero'"),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: o/a, tokn: x}}}}", 4, "did you mean 'token'"),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: o/a}}}}", 4, "names its token or its token_id"),
        ("tokenizer: {pad_to_multiple_of: 0}", 4, "must lie in [1, inf)"),
        ("chat_template: chatlm", 4, "did you mean 'chatml'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(faults, text, line, message):
    found = faults(LINEAR + text)
    assert any(at == line and message in each for at, _, each in found), found
