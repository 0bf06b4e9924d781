"""`show`: groups and totals from headers alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import surgeon
from surgeon.testing.toys import llama_shapes, random_tensors, toy_llama, write_checkpoint

WIDTH, LAYERS = 8, 3


def tensors():
    """A tiny model: two tensors a layer, one layer narrower in `mlp`."""
    found = {"model.embed_tokens.weight": (32, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (32, WIDTH)}
    for layer in range(LAYERS):
        found[f"model.layers.{layer}.attn.weight"] = (WIDTH, WIDTH)
        found[f"model.layers.{layer}.mlp.experts.1.weight"] = (WIDTH, 2 if layer == 1 else 4)
    return {name: np.ones(shape, np.float16 if "norm" in name else np.float32) for name, shape in found.items()}


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(tensors(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"architectures": ["TinyForCausalLM"]}), encoding="utf-8")
    return folder


def groups(contents):
    return {(group.pattern, group.form): group for group in contents.groups}


def test_totals_are_sums_over_all_tensors(checkpoint):
    contents = surgeon.show(checkpoint)
    assert contents.tensors == len(tensors())
    assert contents.parameters == sum(tensor.size for tensor in tensors().values())
    assert contents.bytes == sum(tensor.nbytes for tensor in tensors().values())
    assert sum(contents.dtypes.values()) == contents.bytes
    assert contents.dtypes["F16"] == 2 * WIDTH


def test_layers_of_one_form_are_one_group_and_others_stand_apart(checkpoint):
    found = groups(surgeon.show(checkpoint))
    assert found["model.layers.N.attn.weight", f"F32[{WIDTH}, {WIDTH}]"].layers == (0, 1, 2)
    assert found["model.layers.N.mlp.experts.N.weight", f"F32[{WIDTH}, 4]"].layers == (0, 2)
    assert found["model.layers.N.mlp.experts.N.weight", f"F32[{WIDTH}, 2]"].layers == (1,)


def test_groups_stand_in_the_order_of_the_model(checkpoint):
    patterns = [group.pattern for group in surgeon.show(checkpoint).groups]
    assert patterns[0] == "model.embed_tokens.weight"
    assert patterns[-2:] == ["lm_head.weight", "model.norm.weight"]


def test_the_text_holds_every_group_and_the_totals(checkpoint):
    contents = surgeon.show(checkpoint)
    text = contents.explain()
    assert all(group.pattern in text for group in contents.groups)
    assert "TinyForCausalLM" in text
    assert "layers 0, 2" in text
    assert f"{contents.tensors} tensors" in text
    assert json.loads(json.dumps(contents.to_dict()))["groups"][0]["tensors"] == 1


def test_no_tensor_is_read(tmp_path):
    """A file of 4 TB that is nothing but a header and a hole."""
    count = 2**40
    entry = {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}
    header = json.dumps({"model.layers.0.x": entry}).encode()
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * count)
    assert surgeon.show(path).parameters == count


def adapter(folder: Path, **settings):
    folder.mkdir()
    rank = settings["r"]
    prefix = "base_model.model.model.layers"
    factors = {}
    for layer in range(LAYERS):
        factors[f"{prefix}.{layer}.attn.lora_A.weight"] = np.ones((rank, WIDTH), np.float32)
        factors[f"{prefix}.{layer}.attn.lora_B.weight"] = np.ones((WIDTH, rank), np.float32)
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "target_modules": ["attn"], "base_model_name_or_path": "org/base", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("rslora", "scale"), [(False, "2"), (True, "4")])
def test_an_adapter_shows_rank_scale_and_targets(tmp_path, rslora, scale):
    contents = surgeon.show(adapter(tmp_path / "adapter", r=4, lora_alpha=8, use_rslora=rslora))
    (group,) = contents.groups
    assert contents.kind == "adapter"
    assert group.pattern == "model.layers.N.attn.weight"
    assert group.form == f"LoRA rank 4, scale {scale}, F32[{WIDTH}, {WIDTH}]"
    assert group.parameters == LAYERS * 2 * 4 * WIDTH
    assert "base model org/base" in contents.explain()


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(surgeon.CheckpointError, match="no such file"):
        surgeon.show(tmp_path / "nothing")


# -- roles ------------------------------------------------------------------------------------------------------------


def roles(model):
    return {group.pattern: group.role for group in surgeon.show(model).groups}


def test_roles_are_those_of_the_table(tmp_path):
    found = roles(toy_llama(tmp_path / "toy"))
    assert found["model.embed_tokens.weight"] == "writes residual: embed"
    assert found["model.layers.N.self_attn.o_proj.weight"] == "writes residual: attention"
    assert found["model.layers.N.mlp.down_proj.weight"] == "writes residual: mlp"
    assert found["model.layers.N.self_attn.q_proj.weight"] == "reads residual"
    assert found["model.norm.weight"] == "norm"
    assert found["lm_head.weight"] == "unembed"


@pytest.mark.parametrize(("tied", "words"), [(True, "head tied to the embedding"), (False, "head of its own")])
def test_the_text_and_the_data_say_blocks_width_and_ties(tmp_path, tied, words):
    contents = surgeon.show(toy_llama(tmp_path / "toy", tie_word_embeddings=tied))
    assert f"roles: table llama, 3 blocks, stream 32 wide, {words}" in contents.explain()
    (embed,) = (group for group in contents.groups if group.pattern == "model.embed_tokens.weight")
    assert embed.role == "writes residual: embed" + ", tied" * tied
    wanted = {"family": "llama", "why_not": "", "blocks": 3, "width": 32, "tied": tied, "unknown": []}
    assert json.loads(json.dumps(contents.to_dict()))["roles"] == wanted


@pytest.mark.parametrize(("model_type", "gain"), [("gemma2", "1+w"), ("llama", None)])
def test_output_norms_say_how_the_gain_is_stored(tmp_path, model_type, gain):
    names = ["self_attn.o_proj.weight", "post_attention_layernorm.weight"]
    tensors = {f"model.layers.0.{name}": np.ones((8, 8)[: 1 + ("proj" in name)], np.float32) for name in names}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "hidden_size": 8}))
    found = roles(tmp_path)
    writer, norm = (found[f"model.layers.N.{name}"] for name in names)
    assert writer == "writes residual: attention" + ", then output norm" * bool(gain)
    assert norm == (f"output norm (gain {gain})" if gain else "norm")


def test_what_the_table_does_not_name_is_unknown(tmp_path):
    shapes = {**llama_shapes(), "model.layers.1.adapter.weight": (32, 4)}
    contents = surgeon.show(write_checkpoint(tmp_path / "toy", random_tensors(shapes, 0)))
    assert contents.roles is not None
    assert contents.roles.unknown == ("model.layers.1.adapter.weight",)
    assert {group.pattern for group in contents.groups if group.role == "unknown"} == {"model.layers.N.adapter.weight"}
    assert "possibly writing the stream: 1\n  model.layers.1.adapter.weight" in contents.explain()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "strange"}, "no table is declared for 'strange'"),
        ({}, "no model_type"),
        ({"model_type": None, "hidden_size": []}, "no model_type"),
        ({"model_type": "llama"}, "config.json does not say hidden_size"),
        ({"model_type": "llama", "hidden_size": "wide"}, "config.json does not say hidden_size"),
        ({"model_type": "llama", "hidden_size": 31}, "axis -1 should be 31 and 6 more"),
        (None, "no model_type"),
    ],
)
def test_without_a_table_it_says_so_in_one_line_and_shows_the_rest(tmp_path, config, told):
    contents = surgeon.show(write_checkpoint(tmp_path / "toy", random_tensors(llama_shapes(), 0), config))
    (line,) = (line for line in contents.explain().splitlines() if "roles" in line)
    assert told in line
    assert contents.tensors == len(llama_shapes())
    assert {group.role for group in contents.groups} == {""}
    assert contents.roles is not None
    assert contents.roles.family is None
