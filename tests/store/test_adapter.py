"""Adapters made by PEFT: what the factors read from disk say must be what PEFT merges."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Model, LlamaForCausalLM

from surgeon.errors import MismatchError
from surgeon.store.adapter import LowRank, Replacement
from surgeon.store.checkpoint import open_checkpoint
from surgeon.store.source import open_source
from tests.support import peft_toys
from tests.support.peft_toys import GPT2, LLAMA, gpt2, llama

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "RuntimeWarning")]


def make(root, model, edit=None, **config):
    """The opened base and adapter, and the tensors that PEFT merges them to."""
    made = peft_toys.make(root, model, edit, **config)
    return open_checkpoint(made.base, "./base"), open_source(str(made.adapter)), made.state


def read(stored):
    """A float32 tensor from the very bytes that `stored` names."""
    with stored.file.open("rb") as file:
        file.seek(stored.offset)
        raw = bytearray(file.read(stored.spec.nbytes))
    assert stored.spec.dtype == "F32"
    return torch.frombuffer(raw, dtype=torch.float32).reshape(stored.spec.shape)


def applied(weight, updates):
    """The updates on one tensor, by the formulas of the fields' descriptions."""
    for update in updates:
        if isinstance(update, Replacement):
            weight = read(update.value)
            continue
        delta = update.scale * (read(update.b) @ read(update.a))
        if update.magnitude is not None:
            whole = (weight.T if update.transposed else weight) + delta
            whole = read(update.magnitude)[:, None] * whole / whole.norm(dim=1, keepdim=True)
            weight = whole.T if update.transposed else whole
        else:
            weight = weight + (delta.T if update.transposed else delta)
    return weight


def compare(base, adapter, merged, changes):
    """Every tensor of the base with its updates must be PEFT's merged one; at least `changes` differ from the base."""
    specs = {name: stored.spec for name, stored in base.tensors.items()}
    placed = adapter.on(specs, "./base")
    changed = set()
    for name, stored in base.tensors.items():
        weight = read(stored)
        found = applied(weight, placed.get(name, ()))
        expected = merged[name if name in merged else f"transformer.{name}"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        if not torch.equal(weight, expected):
            changed.add(name)
            assert name in placed
    assert len(changed) >= changes
    return placed


@pytest.mark.parametrize("name", LLAMA)
def test_llama(tmp_path, name):
    config, changes = LLAMA[name]
    compare(*make(tmp_path, llama(bias="bias" in config), **config), changes)


def test_square_layers_stay_as_they_are(tmp_path):
    compare(*make(tmp_path, llama(heads=4), target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]), 8)


@pytest.mark.parametrize("name", GPT2)
def test_gpt2(tmp_path, name):
    config, changes = GPT2[name]
    compare(*make(tmp_path, gpt2(), **config), changes)


def test_linear_and_conv1d_together(tmp_path):
    """PEFT then stores fan_in_fan_out false, which is wrong for the square attn.c_proj."""
    base, adapter, merged = make(tmp_path, gpt2(tied=False), target_modules=["c_proj", "lm_head"], fan_in_fan_out=True)
    assert adapter.config["fan_in_fan_out"] is False
    compare(base, adapter, merged, 5)


def test_base_without_the_prefix_of_its_class(tmp_path):
    model = gpt2()
    bare = GPT2Model(model.config)
    bare.load_state_dict(model.transformer.state_dict())
    _, adapter, merged = make(tmp_path, model, target_modules=["c_attn", "wte"], fan_in_fan_out=True)
    bare.save_pretrained(tmp_path / "bare")
    base = open_checkpoint(tmp_path / "bare", "./bare")
    assert "h.0.attn.c_attn.weight" in base.tensors
    placed = compare(base, adapter, merged, 3)
    assert "wte.weight" in placed


def test_prefix_put_before_all(tmp_path):
    base, adapter, _ = make(tmp_path, llama(), target_modules=["q_proj"])
    specs = {f"language_model.{name}": stored.spec for name, stored in base.tensors.items()}
    assert set(adapter.on(specs, "./base")) == {
        f"language_model.model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)
    }
    twice = specs | {name.replace("language_model", "transformer"): spec for name, spec in specs.items()}
    with pytest.raises(MismatchError, match="cannot tell whether"):
        adapter.on(twice, "./base")


def test_tied_embedding(tmp_path):
    compare(*make(tmp_path, llama(tied=True), target_modules=["embed_tokens"]), 1)


@pytest.mark.parametrize(
    "config", [{"target_modules": ["lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}]
)
def test_head_of_a_tied_base(tmp_path, config):
    base, adapter, _ = make(tmp_path, llama(tied=True), **config)
    with pytest.raises(MismatchError, match=r"lm_head\.weight.*tied"):
        adapter.on({name: stored.spec for name, stored in base.tensors.items()}, "./base")


def test_another_base_lists_all_misfits(tmp_path):
    _, adapter, _ = make(tmp_path, llama(), target_modules=["q_proj", "up_proj"], modules_to_save=["norm"])
    other = copy.deepcopy(llama().config)
    other.hidden_size, other.num_hidden_layers = 32, 1
    LlamaForCausalLM(other).save_pretrained(tmp_path / "other")
    specs = {n: s.spec for n, s in open_checkpoint(tmp_path / "other", "./other").tensors.items()}
    with pytest.raises(MismatchError, match="another base") as caught:
        adapter.on(specs, "./other")
    text = str(caught.value)
    assert "does not fit ./other; 9 tensor(s)" in text
    for part in ("layers.0.self_attn.q_proj.weight", "layers.1.mlp.up_proj.weight", "model.norm.weight: is F32[32]"):
        assert part in text


def test_old_spelling_of_modules_to_save(tmp_path):
    def respell(folder):
        path = folder / "adapter_model.safetensors"
        save_file({n.replace("lm_head.", "lm_head.modules_to_save."): t for n, t in load_file(path).items()}, path)

    compare(*make(tmp_path, llama(), respell, target_modules=["q_proj"], modules_to_save=["lm_head"]), 3)


def test_old_configuration_without_newer_keys(tmp_path):
    def shorten(folder):
        path = folder / "adapter_config.json"
        kept = ("peft_type", "r", "lora_alpha", "target_modules", "bias")
        path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key in kept}))

    compare(*make(tmp_path, llama(), shorten, target_modules=["q_proj"], r=2), 2)


def test_square_layer_with_a_contradicting_flag(tmp_path):
    def flag(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": True}))

    base, adapter, merged = make(tmp_path, llama(), flag, target_modules=["v_proj"])
    compare(base, adapter, merged, 2)
    base, adapter, _ = make(tmp_path / "square", llama(), flag, target_modules=["q_proj"])
    with pytest.raises(MismatchError, match="either way"):
        adapter.on({name: stored.spec for name, stored in base.tensors.items()}, "./base")


def test_factors_stay_apart(tmp_path):
    base, adapter, _ = make(tmp_path, llama(), target_modules=["q_proj"], r=2, lora_alpha=3)
    (update,) = adapter.on({name: stored.spec for name, stored in base.tensors.items()}, "./base")[
        "model.layers.0.self_attn.q_proj.weight"
    ]
    assert isinstance(update, LowRank) and update.scale == 1.5 and update.magnitude is None and not update.transposed
    assert update.a.spec.shape == (2, 16) and update.b.spec.shape == (16, 2)


@pytest.mark.parametrize("config", [{}, {"task_type": "CAUSAL_LM"}])
def test_embedding_trained_whole_on_a_tied_base(tmp_path, config):
    """The model that PEFT merges has two different tensors where the base has one."""
    more = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]} | config
    base, adapter, merged = make(tmp_path, llama(tied=True), **more)
    assert not torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    specs = {name: stored.spec for name, stored in base.tensors.items()}
    with pytest.raises(MismatchError, match=r"embed_tokens\.weight: trained whole while the base's head is tied"):
        adapter.on(specs, "./base")


def test_embedding_trained_whole_on_a_base_without_a_head(tmp_path):
    compare(*make(tmp_path, llama().model, target_modules=["q_proj"], modules_to_save=["embed_tokens"]), 3)
