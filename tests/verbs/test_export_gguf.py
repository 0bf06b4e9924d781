"""What is written for llama.cpp, read back by transformers and by the gguf package."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

import surgeon
from surgeon.artifacts.direction import bank, direction
from surgeon.testing.toys import read_checkpoint, toy_llama
from surgeon_cli import installation, main
from tests.support.family_toys import toy

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
IDS = torch.arange(3, 19)[None]


def byte_level(folder: Path, rows: int = 64) -> Path:
    """A GPT-2-like tokenizer of few tokens beside a toy."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=rows, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog the the quick"] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def sentence_piece(folder: Path) -> Path:
    """The same words with spaces as ▁ and bytes for what is unknown, as Llama 2 and Gemma have them."""
    bytes_ = [f"<0x{number:02X}>" for number in range(8)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *"▁theq", "th", "the", "▁the"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits


def fields(path: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_export_and_import_are_one_anothers_inverse(family, tmp_path):
    base = byte_level(toy(tmp_path / "base", family, tied=family.startswith("gemma")))
    report = surgeon.export_gguf(base, tmp_path / "model.gguf", dtype="float32")
    assert report.facts["error"] == 0
    surgeon.import_gguf(tmp_path / "model.gguf", tmp_path / "again", dtype="float32")
    before, after = read_checkpoint(base), read_checkpoint(tmp_path / "again")
    assert {name for name in before if name != "lm_head.weight"} <= after.keys()
    for name, value in after.items():
        assert torch.allclose(value, before[name].float(), atol=1e-6), name
    assert torch.allclose(logits(tmp_path / "again"), logits(base), atol=1e-4)


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 2.0**-8), ("q8_0", 0.01)])
def test_smaller_dtypes_say_what_they_cost(dtype, most, tmp_path):
    base = byte_level(toy_llama(tmp_path / "base", 1))
    report = surgeon.export_gguf(base, tmp_path / "model.gguf", dtype=dtype)
    assert 0 < report.facts["error"] < most
    receipt = json.loads((tmp_path / "model.gguf.surgeon.json").read_text())
    assert receipt["export"] == "gguf" and len(receipt["base"]["hash"]) == 64 and receipt["error"] < most
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    # Rows of the MLP's second matrix, 48 wide, no block of 32 divides.
    assert kinds["blk.0.ffn_down.weight"] == "BF16"
    assert kinds["blk.0.attn_q.weight"] == ("BF16" if dtype == "bfloat16" else "Q8_0")


def test_a_recipe_is_written_as_its_result(tmp_path):
    base = byte_level(toy_llama(tmp_path / "base", 1))
    edited = surgeon.edit("ablate", surgeon.open(base), directions=direction(torch.ones(1, 32), at="block.1"))
    surgeon.export_gguf(edited, tmp_path / "one.gguf", dtype="float32")
    surgeon.apply(edited, tmp_path / "out")
    surgeon.export_gguf(tmp_path / "out", tmp_path / "two.gguf", dtype="float32")
    one, two = tensors(tmp_path / "one.gguf"), tensors(tmp_path / "two.gguf")
    assert all(np.array_equal(one[name], two[name]) for name in one.keys() | two.keys())
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_sentencepiece_tokens_have_scores_in_the_order_of_merges(tmp_path):
    base = sentence_piece(toy_llama(tmp_path / "base", 1))
    surgeon.export_gguf(base, tmp_path / "model.gguf")
    found = fields(tmp_path / "model.gguf")
    tokens, kinds, scores = (found[f"tokenizer.ggml.{part}"] for part in ("tokens", "token_type", "scores"))
    assert found["tokenizer.ggml.model"] == "llama" and found["tokenizer.ggml.add_space_prefix"] is True
    at = tokens.index
    assert scores[at("th")] > scores[at("the")] > scores[at("▁the")] > scores[at("q")]
    assert [kinds[0], kinds[1], kinds[at("<0x00>")], kinds[at("q")], kinds[-1]] == [2, 3, 6, 1, 5]
    assert len(tokens) == 64


def test_what_is_not_written_is_refused_by_name(tmp_path):
    base = byte_level(toy_llama(tmp_path / "base", 1))
    content = json.loads((base / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Whitespace"}
    (base / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(surgeon.RefusedError, match=r"how it cuts text before BPE: Whitespace"):
        surgeon.export_gguf(base, tmp_path / "model.gguf")
    content["model"] = {"type": "Unigram", "vocab": []}
    (base / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(surgeon.RefusedError, match=r"of the kind 'Unigram'"):
        surgeon.export_gguf(base, tmp_path / "model.gguf")
    with pytest.raises(surgeon.RefusedError, match="models of the type 'gpt2' are not written"):
        surgeon.export_gguf(toy(tmp_path / "gpt2", "gpt2"), tmp_path / "model.gguf")
    with pytest.raises(surgeon.RefusedError, match=r"no tokenizer\.json"):
        surgeon.export_gguf(toy_llama(tmp_path / "bare", 1), tmp_path / "model.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "base", "gpt2"]


def test_llama_3_rotation_is_that_of_transformers(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32}  # fmt: skip
    base = byte_level(toy_llama(tmp_path / "base", 1, rope_scaling=scaling))
    surgeon.export_gguf(base, tmp_path / "model.gguf")
    rotary = AutoModelForCausalLM.from_pretrained(base).model.rotary_emb.inv_freq
    plain = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    factors = torch.from_numpy(tensors(tmp_path / "model.gguf")["rope_freqs.weight"].copy())
    assert torch.allclose(plain / factors, rotary, rtol=1e-5) and factors.max() == 8


def folded(path: Path, name: str) -> np.ndarray:
    """What llama.cpp adds to a matrix: alpha / rank of B A."""
    held, alpha = tensors(path), fields(path)["adapter.lora.alpha"]
    a, b = held[f"{name}.lora_a"], held[f"{name}.lora_b"]
    if name == "token_embd.weight":
        return alpha / b.shape[1] * (a @ b.T)
    return alpha / b.shape[1] * (b @ a)


def test_an_adapter_for_llama_cpp_is_the_change_of_its_own_tensors(tmp_path):
    """Also where rotary rows are in another order, and of the embedding, whose factors change places."""
    base = byte_level(toy_llama(tmp_path / "base", 1))
    rows = direction(torch.randn(2, 32, generator=torch.Generator().manual_seed(2)), at="block.1")
    edited = surgeon.edit("ablate", surgeon.open(base), directions=rows)
    surgeon.export_adapter(toy_llama(tmp_path / "tuned", 5, base=base), tmp_path / "style", base=base, rank=3,
                           drop=["*norm*", "*embed*"])  # fmt: skip
    model = edited + 0.5 * surgeon.open(tmp_path / "style")
    report = surgeon.export_gguf_adapter(model, tmp_path / "edit.gguf")
    assert report.facts["error"] == 0
    assert fields(tmp_path / "edit.gguf")["general.type"] == "adapter"
    surgeon.apply(model, tmp_path / "out")
    for name in ("base", "out"):
        byte_level(tmp_path / name)
        surgeon.export_gguf(tmp_path / name, tmp_path / f"{name}.gguf", dtype="float32")
    before, after = tensors(tmp_path / "base.gguf"), tensors(tmp_path / "out.gguf")
    for name in (name for name in before if len(before[name].shape) == 2):
        change = after[name] - before[name]
        assert np.abs(folded(tmp_path / "edit.gguf", name) - change).max() < 1e-5, name


def test_an_embedding_that_is_the_head_too_is_refused(tmp_path):
    base = toy_llama(tmp_path / "base", 1, tie_word_embeddings=True)
    edited = surgeon.edit("ablate", surgeon.open(base), directions=direction(torch.ones(1, 32), at="block.1"))
    with pytest.raises(surgeon.MismatchError, match=r"embed_tokens\.weight is the head too"):
        surgeon.export_gguf_adapter(edited, tmp_path / "edit.gguf")
    report = surgeon.export_gguf_adapter(edited, tmp_path / "edit.gguf", drop=["*embed*"])
    assert report.facts["dropped"] == ["model.embed_tokens.weight"]


def test_a_control_vector_adds_each_blocks_own(tmp_path):
    base = toy_llama(tmp_path / "base", 1)
    held = bank({f"block.{number}": torch.full((1, 32), float(number + 1)) for number in range(3)})
    held.save(tmp_path / "tone.safetensors")
    surgeon.export_control_vector(tmp_path / "tone.safetensors", tmp_path / "tone.gguf", base=base, strength=-2)
    found, about = tensors(tmp_path / "tone.gguf"), fields(tmp_path / "tone.gguf")
    assert {name: float(value[0]) for name, value in found.items()} == {"direction.1": -4.0, "direction.2": -6.0}
    assert about["general.architecture"] == "controlvector" and about["controlvector.layer_count"] == 2
    assert about["controlvector.model_hint"] == "llama"
    receipt = json.loads((tmp_path / "tone.gguf.surgeon.json").read_text())
    assert receipt["direction"] == held.digest and receipt["base"]["hash"]


def test_one_vector_after_several_blocks_and_what_has_no_place(tmp_path):
    one = direction(torch.ones(1, 32), at="block.2")
    surgeon.export_control_vector(one, tmp_path / "a.gguf")
    assert tensors(tmp_path / "a.gguf").keys() == {"direction.2"}
    surgeon.export_control_vector(one, tmp_path / "b.gguf", layers=(0, 3))
    assert tensors(tmp_path / "b.gguf").keys() == {"direction.1", "direction.2"}
    for at in ("embed", "block.0"):
        with pytest.raises(surgeon.RefusedError, match=f"adds nothing at {at}"):
            surgeon.export_control_vector(direction(torch.ones(1, 32), at=at), tmp_path / "c.gguf")
    with pytest.raises(surgeon.RefusedError, match="subspace of 2 directions"):
        surgeon.export_control_vector(direction(torch.eye(2, 32), at="block.1"), tmp_path / "c.gguf")
    with pytest.raises(surgeon.OutputError, match="exists"):
        surgeon.export_control_vector(one, tmp_path / "a.gguf")


def test_on_the_command_line(tmp_path, monkeypatch, capfd):
    base = byte_level(toy_llama(tmp_path / "base", 1))
    direction(torch.ones(1, 32), at="block.1").save(tmp_path / "tone.safetensors")
    monkeypatch.setattr(installation, "check", lambda: None)
    for arguments in (
        ["gguf", base, "-o", tmp_path / "m.gguf", "--dtype", "q8_0"],
        ["control-vector", tmp_path / "tone.safetensors", "-o", tmp_path / "c.gguf", "--layers", "1..3"],
        ["control-vector", tmp_path / "tone.safetensors", "-o", tmp_path / "d.gguf", "--layers", "3..1"],
    ):
        monkeypatch.setattr("sys.argv", ["surgeon", "export", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main.run()
        assert (end.value.code or 0) == (2 if "3..1" in arguments else 0), capfd.readouterr()
    assert tensors(tmp_path / "c.gguf").keys() == {"direction.1", "direction.2"}
    assert not (tmp_path / "d.gguf").exists()
