"""`import_gguf`: the checkpoint it writes is the one the GGUF was made from, and loads everywhere."""

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

import surgeon
from surgeon.verbs.portable import portable_config, portable_tokenizer

HEADS, KV_HEADS = 4, 2
TEMPLATE = "{% for m in messages %}<|start|>{{ m.role }}: {{ m.content }}{% endfor %}"
TOKENS = [*sorted(ByteLevel.alphabet()), "he", "ll", "<|start|>", "<|end|>"]
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def tiny(tied=True):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


def gguf_name(name):
    if name.startswith("model.layers."):
        _, _, layer, part = name.removesuffix(".weight").split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.weight"
    return {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }[name]


def rotary_order(name, tensor):
    """GGUF keeps the two halves of a rotary head interleaved."""
    heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else 0
    if not heads:
        return tensor
    rows, columns = tensor.shape
    return tensor.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, model, architecture="llama", without=(), parts=None):
    """The model as a GGUF file, in float32."""
    writer = gguf.GGUFWriter(path, architecture)
    config = model.config
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(TOKENS) - 2) + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(len(TOKENS) - 2)
    writer.add_eos_token_id(len(TOKENS) - 1)
    writer.add_chat_template(TEMPLATE)
    if parts:
        writer.add_uint16("split.count", parts)
    for name, tensor in model.state_dict().items():
        if name not in without and not (name == "lm_head.weight" and config.tie_word_embeddings):
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(rotary_order(name, tensor.numpy())))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(model, GGUF file, imported folder, events)."""
    folder = tmp_path_factory.mktemp("import")
    model = tiny()
    events = []
    file = write_gguf(folder / "tiny.gguf", model)
    out = surgeon.import_gguf(file, folder / "out", dtype="float32", on_event=events.append)
    return model, file, out, events


def test_every_tensor_comes_back_under_its_name(made):
    model, _, out, _ = made
    original = model.state_dict()
    written = load_file(out / "model.safetensors")
    assert written.keys() == original.keys() - {"lm_head.weight"}
    assert all(torch.equal(written[name], original[name]) for name in written)


def test_it_loads_unaided_and_computes_the_same(made):
    model, _, out, _ = made
    loaded = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.arange(7).unsqueeze(0)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_the_tokenizer_and_the_chat_template_come_along(made):
    _, file, out, _ = made
    mine = AutoTokenizer.from_pretrained(out)
    direct = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in ("hello", "  two\n\tlines, é", "<|start|>user: hell<|end|>"):
        assert mine(text).input_ids == direct(text).input_ids
    assert mine.eos_token == "<|end|>"
    assert mine.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False) == "<|start|>user: he"
    assert (out / "chat_template.jinja").read_text() == TEMPLATE


def test_the_files_are_spelled_as_every_server_reads_them(made):
    _, _, out, _ = made
    config, tokenizer, generation = (
        json.loads((out / f"{name}.json").read_text()) for name in ("config", "tokenizer_config", "generation_config")
    )
    assert config["rope_theta"] == 50000.0
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not {"rope_parameters", "quantization_config", "_name_or_path"} & config.keys()
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert generation["eos_token_id"] == len(TOKENS) - 1
    assert "_from_model_config" not in generation


def test_progress_ends_at_the_whole(made):
    *_, events = made
    assert events[0].stage == "load"
    assert [event.done for event in events if event.stage == "write"] == sorted(
        e.done for e in events if e.stage == "write"
    )
    assert events[-1].done == events[-1].total > 0


def test_an_untied_head_is_kept_and_the_cast_rounds_once(tmp_path):
    model = tiny(tied=False)
    out = surgeon.import_gguf(write_gguf(tmp_path / "tiny.gguf", model), tmp_path / "out")
    written = load_file(out / "model.safetensors")
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(written[name], tensor.bfloat16()) for name, tensor in model.state_dict().items())


def test_nothing_is_printed(tmp_path, capfd):
    surgeon.import_gguf(write_gguf(tmp_path / "tiny.gguf", tiny()), tmp_path / "out")
    told = capfd.readouterr()
    assert told.out + told.err == ""


def broken(folder, how):
    """A file with one fault, and what the message says of it."""
    file = folder / "broken.gguf"
    if how == "not a GGUF":
        file.write_bytes(b"PK\x03\x04 something else")
        return file, "not a GGUF file"
    if how == "architecture":
        return write_gguf(file, tiny(), architecture="novel"), "architecture 'novel'"
    if how == "missing tensor":
        return write_gguf(file, tiny(), without=["model.layers.1.mlp.up_proj.weight"]), "up_proj"
    if how == "part":
        return write_gguf(file, tiny(), parts=3), "one of 3 parts"
    whole = write_gguf(file, tiny()).read_bytes()
    file.write_bytes(whole[: len(whole) - 1000 if how == "truncated" else 600])
    return file, "truncated"


@pytest.mark.parametrize(
    "how", ["not a GGUF", "architecture", "missing tensor", "part", "truncated", "cut in the header"]
)
def test_a_faulty_file_is_refused_and_leaves_nothing(tmp_path, how):
    file, said = broken(tmp_path, how)
    with pytest.raises(surgeon.CheckpointError, match=said) as error:
        surgeon.import_gguf(file, tmp_path / "out")
    assert error.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]


def test_a_missing_file_a_wrong_dtype_and_an_existing_out_are_refused(tmp_path):
    file = tmp_path / "tiny.gguf"
    with pytest.raises(surgeon.CheckpointError, match="no such file"):
        surgeon.import_gguf(file, tmp_path / "out")
    write_gguf(file, tiny())
    with pytest.raises(surgeon.RefusedError, match="unknown dtype 'int4'"):
        surgeon.import_gguf(file, tmp_path / "out", dtype="int4")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(surgeon.OutputError, match="exists"):
        surgeon.import_gguf(file, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_the_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("surgeon.verbs.import_gguf.find_spec", lambda name: None)
    with pytest.raises(surgeon.RefusedError) as error:
        surgeon.import_gguf(write_gguf(tmp_path / "tiny.gguf", tiny()), tmp_path / "out")
    assert "model-surgeon[gguf]" in error.value.hint


ROPES = [
    {"rope_type": "default", "rope_theta": 50000.0},
    {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 50000.0,
    },
]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_rope_settings_read_back_equal(tmp_path, rope):
    reads_back(LlamaConfig(rope_parameters=rope, max_position_embeddings=128), tmp_path)


@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 8.0}])
def test_rope_settings_of_two_kinds_of_layer_read_back_equal(tmp_path, scaling):
    local = {"rope_type": "default", "rope_theta": 10000.0}
    rope = {"full_attention": scaling | {"rope_theta": 1000000.0}, "sliding_attention": local}
    reads_back(Gemma3TextConfig(rope_parameters=rope), tmp_path)


def reads_back(config, folder):
    spelled = portable_config(json.loads(config.to_json_string()), "bfloat16")
    assert "rope_parameters" not in spelled
    (folder / "config.json").write_text(json.dumps(spelled))
    assert AutoConfig.from_pretrained(folder).rope_parameters == config.rope_parameters


def test_rope_settings_without_an_older_spelling_are_kept():
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4, "rope_type": "yarn"}}
    assert portable_config({"rope_parameters": rope}, "float16")["rope_parameters"] == rope


def test_the_tokenizers_own_notes_are_dropped():
    noted = {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "is_local": True, "eos_token": "</s>"}
    assert portable_tokenizer(noted) == {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
