"""Adapters merged in the space of their factors: the same values as of their products, without making them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.space.noise import Noise
from surgeon.space.registry import merge_methods
from surgeon.testing.toys import read_checkpoint, toy_llama
from tests.support.peft_toys import CONV1D, gpt2, make

EQUIVARIANT = [name for name, method in merge_methods().items() if method.equivariant]
SETTINGS = {"iso_cts": {"common_fraction": 0.5}, "knots": {"density": 0.4}}
MATRIX = "model.layers.0.mlp.up_proj.weight"  # [48, 32]
EMBEDDING = "model.embed_tokens.weight"  # [64, 32], factors of its transpose


def adapter(folder, ranks, seed):
    """A LoRA adapter of one linear layer and the embedding, of ranks that differ; returns the changes it makes."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    rank, other = ranks
    drawn = {
        "layers.0.mlp.up_proj.lora_A.weight": torch.randn(rank, 32, generator=generator),
        "layers.0.mlp.up_proj.lora_B.weight": torch.randn(48, rank, generator=generator),
        "embed_tokens.lora_embedding_A": torch.randn(other, 64, generator=generator),
        "embed_tokens.lora_embedding_B": torch.randn(32, other, generator=generator),
    }
    save_file({f"base_model.model.model.{k}": 0.1 * v for k, v in drawn.items()}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 6, "rank_pattern": {"embed_tokens": other}, "bias": "none",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    a, b, ea, eb = (0.1 * value for value in drawn.values())
    return {MATRIX: 6 / rank * (b @ a), EMBEDDING: 6 / other * (eb @ ea).T}


@pytest.fixture
def three(tmp_path):
    """A base, three adapters on it, and the changes they make."""
    base = surgeon.open(toy_llama(tmp_path / "base"))
    names = [f"one{i}" for i in range(3)]
    found = [
        adapter(tmp_path / name, ranks, i)
        for i, (name, ranks) in enumerate(zip(names, [(4, 2), (1, 3), (7, 5)], strict=True))
    ]
    return base, [surgeon.open(tmp_path / name) for name in names], found


def dense(name, changes, tensor, labels, settings):
    method = merge_methods()[name]
    noise = {method.signature.noise: Noise(0, tensor, labels)} if method.signature.noise else {}
    each = {p.argument: p.per_model for p in method.signature.parameters}
    values = {k: (v,) * len(changes) if each[k] else v for k, v in settings.items()}
    return method(torch.stack(changes), **noise, **values)


def same(found, expected):
    return torch.dist(found, expected) <= 2e-6 * expected.norm()


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_the_result_is_that_of_the_products(tmp_path, three, name):
    base, adapters, changes = three
    expr = surgeon.merge(name, adapters, base_model=base, **SETTINGS.get(name, {}))
    plan = surgeon.plan(expr)
    kernels = {step.kernel for target in plan.targets for step in plan.steps.below(target.key)}
    assert f"core:{name}" in kernels and f"merge:{name}" not in kernels and plan.tier == "B"
    surgeon.apply(expr, tmp_path / "out", dtype="float32")
    before, after = read_checkpoint(tmp_path / "base"), read_checkpoint(tmp_path / "out")
    for tensor in (MATRIX, EMBEDDING):
        expected = dense(name, [c[tensor] for c in changes], tensor, tuple(map(str, adapters)), SETTINGS.get(name, {}))
        assert same(after[tensor], before[tensor] + expected)
        assert not torch.equal(after[tensor], before[tensor])
    assert all(torch.equal(after[k], v) for k, v in before.items() if k not in (MATRIX, EMBEDDING))


@pytest.mark.parametrize("inner", ["ties", "dare_ties", "dare_linear", "task_arithmetic"])
def test_knots_draws_and_elects_the_same_in_both_forms(tmp_path, three, inner):
    base, adapters, changes = three
    settings = {"inner": inner, "density": 0.5}
    surgeon.apply(surgeon.merge("knots", adapters, base_model=base, **settings), tmp_path / "out", dtype="float32")
    expected = dense("knots", [c[MATRIX] for c in changes], MATRIX, tuple(map(str, adapters)), settings)
    found = read_checkpoint(tmp_path / "out")[MATRIX] - read_checkpoint(tmp_path / "base")[MATRIX]
    assert torch.dist(found, expected) <= 1e-5 * expected.norm()


def test_scaled_summed_and_standing_adapters_are_members_too(tmp_path, three):
    """0.5·a, a + b, and the model base + c are all the base and low-rank changes; so is what a merge of them gives."""
    base, (a, b, c), changes = three
    merged = surgeon.merge("tsv_m", [0.5 * a, a - 2 * b, base + c], base_model=base)
    expr = surgeon.merge("svc", [merged, a, base + b], base_model=base)
    plan = surgeon.plan(expr)
    assert not any(step.kernel.startswith("merge:") for step in plan.steps.values())
    surgeon.apply(expr, tmp_path / "out", dtype="float32")
    one, two, three_ = (change[MATRIX] for change in changes)
    first = dense("tsv_m", [0.5 * one, one - 2 * two, three_], MATRIX, (), {})
    expected = dense("svc", [first, one, two], MATRIX, (), {})
    assert same(read_checkpoint(tmp_path / "out")[MATRIX], read_checkpoint(tmp_path / "base")[MATRIX] + expected)


def test_a_member_that_is_no_adapter_is_merged_as_a_whole(tmp_path, three):
    base, (a, b, _), _ = three
    tuned = surgeon.open(toy_llama(tmp_path / "tuned", 5, base=tmp_path / "base"))
    expr = surgeon.merge("tsv_m", [a, tuned], base_model=base)
    kernels = {step.kernel for step in surgeon.plan(expr).steps.values()}
    assert "merge:tsv_m" in kernels and not any(kernel.startswith("core:") for kernel in kernels)
    # An adapter on another model is not a low-rank change of this base.
    other = surgeon.merge("tsv_m", [a, tuned + b], base_model=base)
    assert not any(step.kernel.startswith("core:") for step in surgeon.plan(other).steps.values())


@pytest.mark.parametrize("name", ["tsv_m", "knots", "wudi"])
def test_linear_layers_stored_transposed(tmp_path, name):
    made = []
    for seed, rank in ((0, 4), (1, 2)):
        root = tmp_path / str(seed)
        made.append(make(root, gpt2(), seed=seed, target_modules=CONV1D, r=rank, fan_in_fan_out=True))
    base, adapters = surgeon.open(made[0].base), [surgeon.open(one.adapter) for one in made]
    surgeon.apply(surgeon.merge(name, adapters, base_model=base), tmp_path / "out")
    before, after = read_checkpoint(made[0].base), read_checkpoint(tmp_path / "out")
    files = [load_file(one.adapter / "adapter_model.safetensors") for one in made]
    for layer in ("h.0.attn.c_attn", "h.1.attn.c_proj"):
        pairs = [[f[f"base_model.model.transformer.{layer}.lora_{x}.weight"] for x in "BA"] for f in files]
        changes = [(b @ a).T * (8 / len(a)) for b, a in pairs]
        key = next(k for k in before if k.endswith(f"{layer}.weight"))
        expected = dense(name, changes, key, (), {})
        assert same(after[key], before[key] + expected)
