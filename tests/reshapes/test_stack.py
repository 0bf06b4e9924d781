"""Stacks of layers: their tensors are those of the parts, their config loads, and they run as their layers say."""

import json

import pytest
import torch
import transformers

import surgeon
from surgeon.artifacts.direction import direction
from surgeon.testing.toys import read_checkpoint, toy_llama
from tests.support.family_toys import TOKENS, toy

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "qwen3_moe with a dense layer", "mixtral"]
PREFIX = {"gpt2": "transformer.h."}


def config_of(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def stacked(tmp_path, *parts, **settings):
    out = tmp_path / "out"
    surgeon.apply(surgeon.reshape("stack", *parts, **settings), out, threads=1)
    return out


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stack_of_two_models_loads_whole_and_generates(tmp_path, family, tied):
    a, b = (toy(tmp_path / str(seed), family, tied, seed) for seed in (0, 1))
    out = stacked(tmp_path, (surgeon.open(a), (0, 2)), (surgeon.open(b), (0, 2)), (surgeon.open(a), (1, 2)))
    model, told = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_hidden_layers == 5
    assert model.generate(TOKENS[:1], max_new_tokens=3, do_sample=False).shape == (1, TOKENS.shape[1] + 3)
    tensors, first, second = map(read_checkpoint, (out, a, b))
    prefix = PREFIX.get(family, "model.layers.")
    for new, source, old in [(0, first, 0), (1, first, 1), (2, second, 0), (3, second, 1), (4, first, 1)]:
        held = {
            name.removeprefix(f"{prefix}{new}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{prefix}{new}.")
        }
        wanted = {
            name.removeprefix(f"{prefix}{old}."): tensor
            for name, tensor in source.items()
            if name.startswith(f"{prefix}{old}.")
        }
        assert held.keys() == wanted.keys()
        assert all(torch.equal(held[name], wanted[name]) for name in held)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "qwen2", "llama"])
def test_a_layer_runs_as_it_did_whatever_its_number(tmp_path, family):
    """A stack of a model's layers, two at a time, gives the states that those layers give in the model itself."""
    source = toy(tmp_path / "model", family)
    config = config_of(source)
    if family.startswith("gemma"):
        config["layer_types"] = ["sliding_attention", "full_attention"]
    config["sliding_window"] = 4
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    whole = transformers.AutoModelForCausalLM.from_pretrained(source)
    out = stacked(tmp_path, (surgeon.open(source), (1, 2)))
    cut = transformers.AutoModelForCausalLM.from_pretrained(out)
    whole.model.layers = whole.model.layers[1:]
    whole.config.num_hidden_layers = 1
    whole.model.config.num_hidden_layers = 1
    whole.config.layer_types = cut.config.layer_types if hasattr(cut.config, "layer_types") else None
    with torch.no_grad():
        assert torch.equal(cut(TOKENS, use_cache=False).logits, whole(TOKENS, use_cache=False).logits)


def test_before_is_the_first_parts_behind_the_last_parts(tmp_path):
    a, b = (toy_llama(tmp_path / str(seed), seed) for seed in (0, 1))
    tensors, first, last = map(
        read_checkpoint, (stacked(tmp_path, (surgeon.open(a), (0, 1)), (surgeon.open(b), (2, 3))), a, b)
    )
    assert torch.equal(tensors["model.embed_tokens.weight"], first["model.embed_tokens.weight"])
    for name in ("model.norm.weight", "lm_head.weight"):
        assert torch.equal(tensors[name], last[name])


def test_layers_in_another_order_are_not_taken_for_the_file_they_fill_alike(tmp_path):
    model = toy_llama(tmp_path / "model")
    out = stacked(tmp_path, *((surgeon.open(model), (layer, layer + 1)) for layer in (2, 1, 0)))
    tensors, before = read_checkpoint(out), read_checkpoint(model)
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(tensors[name.format(0)], before[name.format(2)])
    assert surgeon.verify(out).exit_code == 0


def test_all_layers_are_the_model_itself(tmp_path):
    model = toy_llama(tmp_path / "model")
    out = stacked(tmp_path, surgeon.open(model))
    assert (out / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert config_of(out) == config_of(model)


def test_a_stack_of_stacks_is_the_stack_of_their_layers(tmp_path):
    model = surgeon.open(toy_llama(tmp_path / "model"))
    cut = surgeon.reshape("stack", (model, (1, 3)))
    surgeon.apply(
        surgeon.reshape("stack", (model, (0, 2)), (cut, (1, 2)), (cut, (0, 1))), tmp_path / "twice", threads=1
    )
    flat = stacked(tmp_path, (model, (0, 2)), (model, (2, 3)), (model, (1, 2)))
    assert (tmp_path / "twice" / "model.safetensors").read_bytes() == (flat / "model.safetensors").read_bytes()


def test_a_list_over_the_layers_runs_over_those_of_its_own_step(tmp_path):
    a, b = (surgeon.open(toy_llama(tmp_path / str(seed), seed)) for seed in (0, 1))
    cuts = [surgeon.reshape("stack", (model, (0, 2))) for model in (a, b)]
    faded = surgeon.merge("linear", cuts, weight=[0.5, 0.5])
    slid = surgeon.merge("slerp", [cuts[1]], base_model=cuts[0], t=[0, 1])
    surgeon.apply(surgeon.reshape("stack", faded, slid, (a, (2, 3))), tmp_path / "out", threads=1)
    tensors = read_checkpoint(tmp_path / "out")
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(tensors[name.format(2)], read_checkpoint(tmp_path / "0")[name.format(0)])
    assert torch.equal(tensors[name.format(3)], read_checkpoint(tmp_path / "1")[name.format(1)])


def test_other_stacks_of_the_model_are_not_touched(tmp_path):
    config = transformers.WhisperConfig(
        vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, pad_token_id=0,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=8,
        max_target_positions=8, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    model = surgeon.open(tmp_path / "model")
    with pytest.raises(surgeon.RefusedError, match=r"several stacks: .*model\.decoder\.layers\."):
        surgeon.plan(surgeon.reshape("stack", (model, (0, 1))))
    out = stacked(tmp_path, (model, (0, 2)), (model, (0, 3)), prefix="model.decoder.layers.")
    changed = config_of(out)
    assert (changed["encoder_layers"], changed["decoder_layers"]) == (2, 5)
    _, told = transformers.WhisperForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]


@pytest.mark.parametrize(
    ("other", "layers", "told"),
    [
        ({"hidden_size": 16}, (0, 1), "do not fit on top of each other"),
        (
            {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
            (0, 1),
            "num_attention_heads: 4 in .*, 2 in",
        ),
        ({"vocab_size": 48}, (0, 1), r"(?s)lm_head.weight: F32\[64, 32\] in .*, F32\[48, 32\] in .*reshape: vocab"),
        ({"hidden_act": "gelu"}, (0, 1), "hidden_act"),
        ({"model_type": "qwen2"}, (0, 1), "model_type"),
        ({"tie_word_embeddings": True}, (0, 1), "untie"),
        ({}, (2, 4), "layers 2..4 do not lie in the 0..3"),
        ({}, (0, 0), "layers 0..0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, other, layers, told):
    a, b = surgeon.open(toy_llama(tmp_path / "a")), surgeon.open(toy_llama(tmp_path / "b", **other))
    with pytest.raises((surgeon.MismatchError, surgeon.RefusedError), match=told) as refused:
        surgeon.plan(surgeon.reshape("stack", (a, (0, 1)), (b, layers)))
    assert refused.value.exit_code == 2


def test_another_rope_is_a_warning_that_names_both(tmp_path):
    a, b = toy_llama(tmp_path / "a"), toy_llama(tmp_path / "b", rope_theta=500000.0)
    plan = surgeon.plan(surgeon.reshape("stack", (surgeon.open(a), (0, 1)), (surgeon.open(b), (1, 2))))
    assert any("rope_theta (10000.0, 500000.0)" in warning for warning in plan.warnings)
    assert not any("nothing changes" in warning for warning in plan.warnings)


def test_a_config_that_counts_other_layers_is_refused(tmp_path):
    model = surgeon.open(toy_llama(tmp_path / "a"))
    config = config_of(tmp_path / "a") | {"num_hidden_layers": 2}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(surgeon.MismatchError, match="num_hidden_layers: 2"):
        surgeon.plan(surgeon.reshape("stack", (model, (0, 1))))


def test_a_dtype_of_the_other_part_is_kept(tmp_path):
    a, b = toy_llama(tmp_path / "a"), toy_llama(tmp_path / "b", dtype=torch.bfloat16)
    tensors = read_checkpoint(stacked(tmp_path, (surgeon.open(a), (0, 1)), (surgeon.open(b), (1, 2))))
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32
    assert tensors["model.layers.1.mlp.up_proj.weight"].dtype == torch.bfloat16


def test_what_an_edit_promises_is_kept_under_the_layers_new_number(tmp_path):
    """Behind output norms a promise names gains: those of the layer as it is called in the result."""
    source = toy(tmp_path / "model", "gemma3")
    row = direction(torch.randn(32, generator=torch.Generator().manual_seed(1)), at="block.0")
    edited = surgeon.edit("ablate", surgeon.open(source), directions=row, writers="mlp")
    expr = surgeon.reshape("stack", (edited, (1, 2)), (edited, (0, 2)))
    plan = surgeon.plan(expr, any_model=True)
    promised = {target.name: target.promise.gains for target in plan.targets if target.promise}
    norm = "model.layers.{}.post_feedforward_layernorm.weight"
    assert promised == {f"model.layers.{i}.mlp.down_proj.weight": (norm.format(i),) for i in range(3)}
    surgeon.apply(expr, tmp_path / "out", any_model=True)
    assert surgeon.verify(tmp_path / "out").exit_code == 0
