"""Adapters that are refused by name: other kinds, settings with a meaning not kept, and broken files."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from surgeon.errors import CheckpointError
from surgeon.store.adapter import open_adapter
from surgeon.store.source import open_source

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def pair(rank=2, module=Q):
    return {f"{module}.lora_A.weight": torch.zeros(rank, 4), f"{module}.lora_B.weight": torch.zeros(4, rank)}


def adapter(root, tensors=None, **config):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "none"} | config
    (root / "adapter_config.json").write_text(json.dumps(config))
    save_file(pair() if tensors is None else tensors, root / "adapter_model.safetensors")
    return root


def test_the_plain_one_is_read(tmp_path):
    found = open_source(str(adapter(tmp_path)))
    assert list(found.updates) == ["model.layers.0.self_attn.q_proj.weight"]
    assert open_source(str(tmp_path / "adapter_model.safetensors")).updates == found.updates


SETTINGS = {
    "target_parameters": ["experts.up"], "lora_bias": True, "layer_replication": [[0, 2]], "megatron_config": {"a": 1},
    "trainable_token_indices": [1], "alora_invocation_tokens": [1], "use_qalora": True, "use_bdlora": {"nblocks": 1},
    "arrow_config": {"top_k": 1}, "kasa_config": {"beta": 1}, "monteclora_config": {"num_samples": 1},
    "velora_config": {"scale": 1}, "ensure_weight_tying": True, "a_setting_of_tomorrow": "yes",
}  # fmt: skip


@pytest.mark.parametrize("key", SETTINGS)
def test_settings_refused_by_name(tmp_path, key):
    with pytest.raises(CheckpointError, match=f"not supported: {key}=") as caught:
        open_source(str(adapter(tmp_path, **{key: SETTINGS[key]})))
    assert "merge_and_unload" in caught.value.hint
    for empty in (None, False, {}, []):
        open_source(str(adapter(tmp_path, **{key: empty})))


@pytest.mark.parametrize(
    "start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "tomorrow", ["x"], 2]
)
def test_starts_that_change_the_base(tmp_path, start):
    with pytest.raises(CheckpointError, match="init_lora_weights"):
        open_source(str(adapter(tmp_path, init_lora_weights=start)))


@pytest.mark.parametrize("kind", ["LOHA", "ADALORA", "VERA", None, 3])
def test_other_kinds(tmp_path, kind):
    with pytest.raises(CheckpointError, match=re.escape(f"peft_type {kind!r}")):
        open_source(str(adapter(tmp_path, peft_type=kind)))


BROKEN = {
    "r": [0, -1, 1.5, True, "8", None, 2**70], "lora_alpha": [None, "16", True, float("nan"), float("inf")],
    "bias": ["some", 1], "use_rslora": ["yes", 1], "use_dora": ["no"], "fan_in_fan_out": [0.5],
    "modules_to_save": ["lm_head", [1], [""]],
    "rank_pattern": [[1], {"q": 0}, {"q": "1"}, {"(": 1}, {"(a+)+$": 1}, {".*.*.*.*": 1}],
    "alpha_pattern": [{"q": None}, {"q": float("inf")}, {"[": 1}, {"a" * 2000: 1}],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BROKEN.items() for value in values])
def test_values_out_of_range(tmp_path, key, value):
    with pytest.raises(CheckpointError, match=key) as caught:
        open_source(str(adapter(tmp_path, **{key: value})))
    assert len(str(caught.value)) < 3000


Z = torch.zeros
FILES = {
    "B missing": ({f"{Q}.lora_A.weight": Z(2, 4)}, "factor B is missing"),
    "A missing": ({f"{Q}.lora_B.weight": Z(4, 2)}, "factor A is missing"),
    "other rank": (pair(3), "gives rank 2"),
    "ranks differ": ({f"{Q}.lora_A.weight": Z(2, 4), f"{Q}.lora_B.weight": Z(4, 3)}, "gives rank 2"),
    "convolution": ({f"{Q}.lora_A.weight": Z(2, 4, 1, 1), f"{Q}.lora_B.weight": Z(4, 2, 1, 1)}, "convolutions"),
    "magnitude without DoRA": (pair() | {f"{Q}.lora_magnitude_vector": Z(4)}, "not use_dora"),
    "magnitude alone": ({f"{Q}.lora_magnitude_vector": Z(4)}, "no low-rank factors"),
    "unknown part": (pair() | {f"{Q}.lora_C.weight": Z(1)}, "lora_C"),
    "bias of a factor": (pair() | {f"{Q}.lora_B.bias": Z(4)}, "lora_B.bias"),
    "no prefix": (pair() | {"model.norm.weight": Z(4)}, "model.norm.weight"),
    "a factor without prefix": ({name.removeprefix("base_model.model."): t for name, t in pair().items()}, "lora_A"),
    "not declared": (pair() | {"base_model.model.model.norm.weight": Z(4)}, "model.norm.weight"),
    "undeclared bias": (pair() | {f"{Q[:-6]}k_proj.bias": Z(4)}, "k_proj.bias"),
    "undeclared module saved": (
        pair() | {"base_model.model.score.modules_to_save.weight": Z(4)},
        "score.modules_to_save",
    ),
    "tokens": (
        pair() | {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": Z(4)},
        "token_adapter",
    ),
    "stored twice": (pair() | {f"{Q}.base_layer.bias": Z(4), f"{Q}.bias": Z(4)}, "bias"),
    "integers": ({name: tensor.int() for name, tensor in pair().items()}, r"I32\[2, 4\]"),
    "mixed factors": (pair() | {f"{Q}.lora_embedding_A": Z(2, 4), f"{Q}.lora_embedding_B": Z(4, 2)}, "both linear"),
    "nothing": ({}, "without tensors"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_is_accounted_for(tmp_path, name):
    tensors, message = FILES[name]
    with pytest.raises(CheckpointError, match=message):
        open_source(str(adapter(tmp_path, tensors)))


def test_bias_stored_twice_where_biases_are_declared(tmp_path):
    tensors = pair() | {f"{Q}.base_layer.bias": Z(4), f"{Q}.bias": Z(4)}
    with pytest.raises(CheckpointError, match="stored twice"):
        open_source(str(adapter(tmp_path, tensors, bias="all")))


def test_dora_needs_every_magnitude(tmp_path):
    with pytest.raises(CheckpointError, match="no magnitude vector"):
        open_source(str(adapter(tmp_path, use_dora=True)))
    with pytest.raises(CheckpointError, match=r"magnitude vector is F32\[3\]"):
        open_source(str(adapter(tmp_path, pair() | {f"{Q}.lora_magnitude_vector": Z(3)}, use_dora=True)))


def test_pickled_adapter(tmp_path):
    adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(pair(), tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is a pickle") as caught:
        open_source(str(tmp_path))
    exec(caught.value.hint.split('python -c "')[1].rstrip('"'))
    assert len(open_source(str(tmp_path)).updates) == 1


def test_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        open_adapter(tmp_path, "./a")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        open_adapter(tmp_path, "./a")


def test_duplicate_key_in_the_configuration(tmp_path):
    adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "r": 4}')
    with pytest.raises(CheckpointError, match="duplicate key 'r'"):
        open_source(str(tmp_path))
