"""reshape: vocab. A model brought to other tokens computes what it did, row by row, whatever wrote the rows."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import surgeon
from surgeon.errors import MismatchError, RecipeError
from surgeon.planning.options import Options
from surgeon.planning.plan import build
from surgeon.space.expr import Merge
from surgeon.space.numeric import CHUNK
from surgeon.space.output import Output, Recipe
from surgeon.testing.toys import llama_shapes, random_tensors, read_checkpoint, write_checkpoint
from tests.support.tokenizer_toys import KINDS, OTHERS, bpe, with_tokenizer, words

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[surgeon.Expr, surgeon.Expr]:
    one, other = KINDS["bpe"]
    return surgeon.open(with_tokenizer(tmp_path / "a", one, 1)), surgeon.open(
        with_tokenizer(tmp_path / "b", other, 2, 5)
    )


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_reshaped_model_says_what_the_model_says_token_by_token(kind: str, tied: bool, tmp_path: Path):
    """The theorem that defines it: on its own tokens, logits of its own tokens are the same numbers."""
    one, other = KINDS[kind]
    a = surgeon.open(with_tokenizer(tmp_path / "a", one, 1, tie_word_embeddings=tied))
    b = surgeon.open(with_tokenizer(tmp_path / "b", other, 2, 3, tie_word_embeddings=tied))
    surgeon.apply(surgeon.reshape("vocab", b, a, b), tmp_path / "out")
    new, old = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab(), other.get_vocab()
    tokens = sorted(old, key=old.__getitem__)
    said = logits(tmp_path / "out", [new[token] for token in tokens])
    expected = logits(tmp_path / "b", [old[token] for token in tokens])
    mine = [new[token] for token in tokens]
    torch.testing.assert_close(said[:, mine], expected[:, [old[token] for token in tokens]], rtol=0, atol=1e-6)
    assert len(new) == said.shape[1] == len(one.get_vocab() | old)


def test_what_a_token_lacks_is_the_bases_row(pair, tmp_path: Path):
    a, b = pair
    surgeon.apply(surgeon.reshape("vocab", b, a, b), tmp_path / "out")
    rows, vocabulary = read_checkpoint(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    base, own = KINDS["bpe"][0].get_vocab(), KINDS["bpe"][1].get_vocab()
    held = {name: read_checkpoint(tmp_path / name) for name in "ab"}
    for token, row in vocabulary.items():
        owner, place = ("b", own[token]) if token in own else ("a", base[token])
        for tensor in (EMBED, HEAD):
            assert torch.equal(rows[tensor][row], held[owner][tensor][place])


def test_equal_vocabularies_change_nothing(tmp_path: Path):
    a, b = (surgeon.open(with_tokenizer(tmp_path / name, bpe(), seed)) for seed, name in enumerate("ab"))
    plan = build(Recipe(surgeon.reshape("vocab", b, a, b)), Options())
    assert all(target.action == "copy" for target in plan.targets)
    assert not plan.config
    surgeon.apply(surgeon.reshape("vocab", a, b), tmp_path / "out")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_moved_bit_for_bit(dtype: torch.dtype, tmp_path: Path):
    """Also -0, which a sum of rows would lose."""
    one, other = KINDS["words"]
    a = surgeon.open(with_tokenizer(tmp_path / "a", one, 1, dtype=dtype))
    b = with_tokenizer(tmp_path / "b", other, 2, dtype=dtype)
    tensors = read_checkpoint(b)
    tensors[EMBED][:, 0] = -0.0
    write_checkpoint(b, tensors, json.loads((b / "config.json").read_text()))
    surgeon.apply(surgeon.reshape("vocab", surgeon.open(b), a, surgeon.open(b)), tmp_path / "out")
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    found = read_checkpoint(tmp_path / "out")[EMBED]
    for token, row in other.get_vocab().items():
        assert torch.equal(found[vocabulary[token]].view(torch.uint8), tensors[EMBED][row].view(torch.uint8))


@pytest.mark.parametrize("settings", [{}, {"pad_to_multiple_of": 64, "missing": "mean"}])
def test_the_same_bytes_whatever_the_blocks(settings, tmp_path: Path):
    """Also where blocks end inside a row."""
    one, other = KINDS["bpe"]
    a = surgeon.open(with_tokenizer(tmp_path / "a", one, 1, hidden_size=200))
    b = surgeon.open(with_tokenizer(tmp_path / "b", other, 2, hidden_size=200))
    expr = surgeon.reshape("vocab", b, a, b, **settings)
    surgeon.apply(expr, tmp_path / "one", threads=1)
    surgeon.apply(expr, tmp_path / "two", threads=2, block=4 * CHUNK)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "one")) * 200 > 2 * CHUNK
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    assert surgeon.verify(tmp_path / "two").exit_code == 0


def test_padding_is_the_mean_of_all_rows(pair, tmp_path: Path):
    a, b = pair
    surgeon.apply(surgeon.reshape("vocab", a, b, pad_to_multiple_of=64), tmp_path / "out")
    rows, count = read_checkpoint(tmp_path / "out")[EMBED], len(AutoTokenizer.from_pretrained(tmp_path / "out"))
    assert rows.shape[0] == 64 > count
    torch.testing.assert_close(rows[count:], rows[:count].mean(0).expand(64 - count, -1), rtol=0, atol=1e-7)
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 64


def test_the_tokenizer_of_another_brings_its_files_and_ids(pair, tmp_path: Path):
    a, b = pair
    (tmp_path / "a/merges.txt").write_text("stale\n")
    (tmp_path / "b/chat_template.jinja").write_text("{{ b }}")
    (tmp_path / "a/generation_config.json").write_text(json.dumps({"eos_token_id": 1, "top_p": 0.5}))
    surgeon.apply(surgeon.reshape("vocab", a, b, tokenizer=b), tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not (tmp_path / "out/merges.txt").exists()
    config, other = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "b"))
    assert [config[key] for key in ("bos_token_id", "eos_token_id")] == [2, 1]
    assert config["eos_token_id"] == other["eos_token_id"]
    assert json.loads((tmp_path / "out/generation_config.json").read_text()) == {"eos_token_id": 1, "top_p": 0.5}
    assert config["vocab_size"] == KINDS["bpe"][1].get_vocab_size()
    assert surgeon.verify(tmp_path / "out").exit_code == 0


def test_files_that_spell_the_vocabulary_again_are_left_out_of_a_longer_one(pair, tmp_path: Path):
    for name in ("merges.txt", "vocab.json", "tokenizer.model"):
        (tmp_path / "a" / name).write_text("stale\n")
    surgeon.apply(surgeon.reshape("vocab", *pair), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} == {
        "README.md", "config.json", "model.safetensors", "surgeon.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_other_architectures_go_by_declared_names_and_unknown_ones_are_refused(tmp_path: Path):
    tokenizers = {name: words(texts) for name, texts in (("a", ("x y",)), ("b", OTHERS))}
    for name, tokenizer in tokenizers.items():
        rows = tokenizer.get_vocab_size()
        shapes = {"net.word_embeddings.weight": (rows, 4), "lm_head.bias": (rows,), "lm_head.weight": (rows, 4)}
        write_checkpoint(tmp_path / name, random_tensors(shapes, 1), {"model_type": "own", "vocab_size": rows})
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    a, b = (surgeon.open(tmp_path / name) for name in "ab")
    surgeon.apply(surgeon.reshape("vocab", b, a, b), tmp_path / "out")
    ids = json.loads((tmp_path / "out/tokenizer.json").read_text())["model"]["vocab"]
    bias, own = read_checkpoint(tmp_path / "out")["lm_head.bias"], read_checkpoint(tmp_path / "b")["lm_head.bias"]
    assert bias[ids["one"]] == own[tokenizers["b"].token_to_id("one")]
    write_checkpoint(tmp_path / "a", random_tensors({"net.table.weight": (9, 4)}, 1), {"model_type": "own"})
    with pytest.raises(MismatchError, match="no tensor that is known to have a row a token"):
        build(Recipe(surgeon.reshape("vocab", a, b)), Options())


class TestRefused:
    def test_a_merge_of_two_vocabularies(self, pair):
        with pytest.raises(MismatchError) as refused:
            build(Recipe(surgeon.merge("slerp", pair[1:], base_model=pair[0], t=0.5)), Options())
        told = str(refused.value)
        assert "a has rows for 35 tokens and b for 43" in told
        assert "reshape: vocab" in told
        assert "tokenizer_source: union" in told

    def test_a_model_without_a_fast_tokenizer(self, pair, tmp_path: Path):
        (tmp_path / "b/tokenizer.json").unlink()
        with pytest.raises(MismatchError, match=r"b has no tokenizer\.json"):
            build(Recipe(surgeon.reshape("vocab", *pair)), Options())

    def test_models_that_do_not_fit(self, pair, tmp_path: Path):
        a, _ = pair
        tied = surgeon.open(with_tokenizer(tmp_path / "tied", words(), hidden_size=16, tie_word_embeddings=True))
        with pytest.raises(MismatchError) as refused:
            build(Recipe(surgeon.reshape("vocab", a, tied)), Options())
        assert f"{EMBED}: F32[35, 32] in a, F32[" in str(refused.value)
        assert f"{HEAD}: a has it, tied does not" in str(refused.value)

    def test_rows_that_differ_within_a_model(self, tmp_path: Path):
        a = with_tokenizer(tmp_path / "a", words())
        config = json.loads((a / "config.json").read_text())
        shapes = llama_shapes(config) | {HEAD: (config["vocab_size"] + 1, 32)}
        write_checkpoint(a, random_tensors(shapes, 0), config)
        with pytest.raises(MismatchError, match="rows differ"):
            build(Recipe(surgeon.reshape("vocab", surgeon.open(a))), Options())

    def test_in_python_what_is_none_of_the_models(self, pair, tmp_path: Path):
        stranger = surgeon.open(tmp_path / "else")
        with pytest.raises(RecipeError) as refused:
            surgeon.reshape("vocab", *pair, tokenizer=stranger, tokens={"x": {"source": stranger}}, missing="last")
        assert [fault.message for fault in refused.value.faults] == [
            "tokenizer: else is none of the models given", "tokens: else is none of the models given",
            "missing must be one of base, mean, not 'last'",
        ]  # fmt: skip


class TestRecipe:
    TEXT = """
surgeon: 1
models: {a: ./a, b: ./b}
steps:
  a_in: {reshape: vocab, of: a, with: [b], tokenizer: base}
  b_in:
    reshape: vocab
    of: b
    with: [a, b]
    tokenizer: a
    missing: mean
    tokens:
      "<|x|>": {source: {kind: zero}}
      "cat": {source: {kind: model_token, model: b, token: dog}, force: true}
      "sat": {source: {kind: model_token, model: b, token_id: 3}}
      "ran": {source: a}
  merged: {merge: slerp, base_model: a_in, models: [b_in], t: 0.5}
output: {chat_template: chatml}
"""

    def text(self, place: Path, text: str) -> Path:
        (place / "recipe.yaml").write_text(text)
        return place / "recipe.yaml"

    def test_it_reads_back_equal(self, tmp_path: Path):
        recipe = surgeon.load_recipe(self.text(tmp_path, self.TEXT))
        again = surgeon.load_recipe(self.text(tmp_path, surgeon.dump_recipe(recipe)))
        assert again == recipe
        b = surgeon.open(tmp_path / "b")
        a = surgeon.open(tmp_path / "a")
        source = {"kind": "model_token", "model": b, "token": "dog"}
        tokens = {
            "<|x|>": {"source": {"kind": "zero"}}, "cat": {"source": source, "force": True}, "ran": {"source": a},
            "sat": {"source": {"kind": "model_token", "model": b, "token_id": 3}},
        }  # fmt: skip
        assert isinstance(recipe.expr, Merge)
        assert recipe.expr.members[0].of == surgeon.reshape(
            "vocab", b, a, b, tokenizer=a, missing="mean", tokens=tokens
        )

    def test_a_model_called_union_or_base_is_not_mistaken_for_the_word(self, tmp_path: Path):
        union, base = (surgeon.open(tmp_path / name) for name in ("union", "base"))
        for expr in (
            surgeon.reshape("vocab", union, base, tokenizer=union),
            surgeon.reshape("vocab", union, base, tokenizer=base),
            surgeon.reshape("vocab", union, base, tokenizer="base"),
            surgeon.reshape("vocab", union, base, tokenizer="union"),
        ):
            assert surgeon.load_recipe(self.text(tmp_path, surgeon.dump_recipe(expr))).expr == expr

    @pytest.mark.parametrize(
        ("was", "now", "says"),
        [
            ("tokenizer: a\n", "tokenizer: c\n", "recipe.yaml:10: 'c' is none of this step's models"),
            ("source: a}", "source: c}", "recipe.yaml:13: 'c' is none of this step's models"),
            ("token: dog", "tken: dog", "unknown key 'tken'"),
            ("kind: zero", "kind: nought", "source"),
            (", token: dog", "", "a model_token names its token or its token_id"),
            ("chatml", "chatlm", "there is no chat template 'chatlm'"),
            ("missing: mean", "pad_to_multiple_of: 0", "pad_to_multiple_of must lie in [1, inf)"),
        ],
    )
    def test_faults_say_where(self, was: str, now: str, says: str, tmp_path: Path):
        with pytest.raises(RecipeError) as refused:
            surgeon.load_recipe(self.text(tmp_path, self.TEXT.replace(was, now)))
        assert says in str(refused.value)


def test_a_chat_template_is_written_where_the_base_has_one(pair, tmp_path: Path):
    a, _ = pair
    surgeon.apply(Recipe(surgeon.merge("linear", [a], weight=1), Output(chat_template="chatml")), tmp_path / "file")
    assert "<|im_start|>" in (tmp_path / "file/chat_template.jinja").read_text()
    about = json.loads((tmp_path / "a/tokenizer_config.json").read_text()) | {"chat_template": "old"}
    (tmp_path / "a/tokenizer_config.json").write_text(json.dumps(about))
    surgeon.apply(Recipe(surgeon.merge("linear", [a], weight=1), Output(chat_template="{{ own }}")), tmp_path / "key")
    assert json.loads((tmp_path / "key/tokenizer_config.json").read_text()) == about | {"chat_template": "{{ own }}"}
    assert not (tmp_path / "key/chat_template.jinja").exists()
    assert AutoTokenizer.from_pretrained(tmp_path / "key").chat_template == "{{ own }}"
    assert surgeon.verify(tmp_path / "key").exit_code == 0


def test_equal_sizes_with_other_tokens_are_a_warning(tmp_path: Path):
    a = surgeon.open(with_tokenizer(tmp_path / "a", words(("x y z",)), 1))
    b = surgeon.open(with_tokenizer(tmp_path / "b", words(("x z y",)), 2))
    (said,) = surgeon.plan(0.5 * a + 0.5 * b).warnings
    assert said.startswith("2 rows are other tokens in b than in a, which is combined with it: row 4 is 'z' and 'y'")
    both = [surgeon.reshape("vocab", of, a, b) for of in (a, b)]
    assert not surgeon.plan(0.5 * both[0] + 0.5 * both[1]).warnings
