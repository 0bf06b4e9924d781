"""Disk ↔ memory: every tensor of the disk is a view into the parameters, by transformers' own tables."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from surgeon.errors import MismatchError
from surgeon.runtime.names import parameter_views, views_of
from surgeon.testing.toys import read_checkpoint
from tests.support.family_toys import TOKENS, TOYS, loaded, toy

SMALL = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "n_routed_experts": 4, "num_experts": 4,
    "num_local_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", TOYS)
def test_views_are_what_the_disk_holds(name, tied, tmp_path):
    model = loaded(toy(tmp_path / "toy", name, tied))
    disk, views = read_checkpoint(model.folder), parameter_views(model)
    assert views.keys() == disk.keys()
    assert [key for key in disk if not torch.equal(views[key], disk[key])] == []


@pytest.mark.parametrize("kind", ["OlmoeConfig", "PhimoeConfig", "DeepseekV3Config", "Glm4MoeConfig", "MiniMaxConfig"])
def test_families_without_a_table_have_views_too(kind, tmp_path):
    """Whatever transformers saves by its conversion table is found again in the parameters."""
    config = getattr(transformers, kind)(**SMALL)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    disk = load_file(tmp_path / "model.safetensors")
    views = views_of(model, {name: tuple(value.shape) for name, value in disk.items()})
    assert views.keys() == disk.keys()
    assert [key for key in disk if not torch.equal(views[key], disk[key])] == []


def test_a_view_is_the_live_parameter(tmp_path):
    model = loaded(toy(tmp_path / "toy", "mixtral"))
    view = parameter_views(model)["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    before = model.model(TOKENS).logits
    view.zero_()
    assert model.blocks[1].mlp.experts.gate_up_proj[2, view.shape[0] :].abs().max() == 0
    assert not torch.equal(model.model(TOKENS).logits, before)


def test_names_without_the_trunks_prefix_and_old_buffers(tmp_path):
    """GPT-2 as it was first published: no prefix, and a mask saved beside the weights."""
    folder = toy(tmp_path / "toy", "gpt2", tied=True)
    disk = {name.removeprefix("transformer."): value for name, value in read_checkpoint(folder).items()}
    save_file(disk | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}, folder / "model.safetensors", {"format": "pt"})
    views = parameter_views(loaded(folder))
    assert views.keys() == disk.keys()
    assert [key for key in disk if not torch.equal(views[key], disk[key])] == []


def test_what_cannot_be_expressed_is_an_error_by_name_when_asked_for(monkeypatch, tmp_path):
    from transformers import conversion_mapping
    from transformers.core_model_loading import PermuteForRope, WeightConverter

    model = loaded(toy(tmp_path / "toy", "llama"))
    odd = [WeightConverter("q_proj.weight", "q_proj.weight", operations=[PermuteForRope()])]
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda model: odd)
    views = parameter_views(model)
    assert torch.equal(views["model.norm.weight"], model.model.model.norm.weight)
    with pytest.raises(MismatchError, match=r"layers\.1\.self_attn\.q_proj\.weight.*PermuteForRope"):
        views["model.layers.1.self_attn.q_proj.weight"]
    with pytest.raises(MismatchError, match=r"no tensor 'model\.nrm\.weight'\n  next: did you mean 'model\.norm"):
        views["model.nrm.weight"]


def test_parameters_that_are_not_in_memory_are_named():
    config = transformers.LlamaConfig(vocab_size=32, hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(MismatchError, match=r"model\.norm\.weight is not in memory"):
        views_of(model, {"model.norm.weight": (16,)})["model.norm.weight"]
