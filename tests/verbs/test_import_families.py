"""GGUF files of families beside Llama: every tensor comes back, and the model computes the same."""

import json

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel

import surgeon
from surgeon.ship.gguf_names import attention_scalar

TOKENS = [*sorted(ByteLevel.alphabet()), "he", "ll", "<|start|>", "<|end|>"]
PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "e", "he", "▁he"]
# llama.cpp divides attention by the root of the head size, so that a GGUF does not tell it.
_GEMMA = {"query_pre_attn_scalar": 16, "sliding_window": 64, "head_dim": 16}

FAMILIES = {
    "qwen2": (gguf.MODEL_ARCH.QWEN2, "Qwen2Config", {}),
    "qwen3": (gguf.MODEL_ARCH.QWEN3, "Qwen3Config", {"head_dim": 128}),
    "gemma2": (gguf.MODEL_ARCH.GEMMA2, "Gemma2Config", _GEMMA),
    "gemma3": (gguf.MODEL_ARCH.GEMMA3, "Gemma3TextConfig", _GEMMA),
}


def toy(family, **more):
    _, kind, special = FAMILIES[family]
    vocabulary = len(PIECES if family.startswith("gemma") else TOKENS)
    usual = {"vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
             "tie_word_embeddings": True}  # fmt: skip
    config = getattr(transformers, kind)(**{**usual, **special, **more})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write(path, family, model, more=()):
    """As llama.cpp's converter writes it, in float32."""
    arch, config = FAMILIES[family][0], model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if family.startswith("gemma"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)
        writer.add_tokenizer_model("llama")
        writer.add_token_list(PIECES)
        writer.add_token_scores([-float(number) for number in range(len(PIECES))])
        kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.UNKNOWN] + [gguf.TokenType.BYTE] * 256
        writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(PIECES) - len(kinds)))
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(TOKENS)
        writer.add_token_types([gguf.TokenType.NORMAL] * (len(TOKENS) - 2) + [gguf.TokenType.CONTROL] * 2)
        writer.add_token_merges(["h e", "l l"])
        writer.add_bos_token_id(len(TOKENS) - 2)
        writer.add_eos_token_id(len(TOKENS) - 1)
    for add, *values in more:
        getattr(writer, add)(*values)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        value = tensor + 1 if family.startswith("gemma") and name.endswith("norm.weight") else tensor
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(called, np.ascontiguousarray(value.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_it_comes_back(family, tmp_path):
    model = toy(family)
    out = surgeon.import_gguf(write(tmp_path / "a.gguf", family, model), tmp_path / "out", dtype="float32")
    original, found = model.state_dict(), load_file(out / "model.safetensors")
    assert found.keys() == original.keys() - {"lm_head.weight"}
    for name, value in found.items():
        torch.testing.assert_close(value, original[name], rtol=1e-6, atol=2e-7)  # + 1 − 1 of Gemma's gains
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokens = torch.arange(5, 30).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == model.config.model_type
    assert not {"rope_parameters", "quantization_config"} & config.keys()
    assert transformers.AutoTokenizer.from_pretrained(out)("he").input_ids


def test_a_rope_scaling_is_taken_over(tmp_path):
    """As in Gemma 3 from 4B on: the layers that see everything turn eight times slower."""
    rope = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
    model = toy("gemma3", rope_parameters=rope, num_hidden_layers=6)
    more = [("add_rope_scaling_type", gguf.RopeScalingType.LINEAR), ("add_rope_scaling_factor", 8.0)]
    out = surgeon.import_gguf(write(tmp_path / "a.gguf", "gemma3", model, more), tmp_path / "out", dtype="float32")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokens = torch.arange(5, 60).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
    assert json.loads((out / "config.json").read_text())["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


@pytest.mark.parametrize(("layers", "width", "expected"), [(46, 32 * 144, 144), (62, 32 * 168, 168), (34, 2560, 256)])
def test_the_largest_gemmas_scale_their_queries_by_width(layers, width, expected):
    assert attention_scalar(layers, width, 32, 256) == expected
