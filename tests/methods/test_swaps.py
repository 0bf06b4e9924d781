"""nearswap, arcee_fusion and passthrough: which entries are taken, against the plain formulas."""

import pytest
import torch
from safetensors.torch import load_file

import surgeon
from surgeon.methods.arcee_fusion import arcee_fusion, divergence
from surgeon.methods.nearswap import nearswap
from surgeon.space.schedule import Rule, Rules, exact
from surgeon.testing.toys import write_checkpoint


def random(*shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_near_entries_are_the_models_and_far_ones_move_by_t():
    base, model, t = random(40), random(40, seed=1), 0.7
    change = model - base
    share = (t / change.abs().clamp_min(1e-6)).clamp(0, 1)
    torch.testing.assert_close(base + nearswap(change[None], t), share * model + (1 - share) * base)
    assert torch.equal(nearswap(change[None], 0.0), torch.zeros(40))
    assert torch.equal(nearswap(change[None], 100.0), change)


def fused(base, model):
    """Arcee Fusion by sorting, in float64."""
    if base.ndim > 1:
        p, q = (torch.softmax(each.double(), -1) + 1e-8 for each in (model, base))
        important = (model - base).abs() * (p * torch.log(p / q)).sum(-1, keepdim=True).float()
    else:
        important = (model - base).abs()
    ordered = important.flatten().sort().values
    first, median, third = (float(ordered[int(q * (ordered.numel() - 1))]) for q in (0.25, 0.5, 0.75))
    return torch.where(important >= median + 1.5 * (third - first), model, base)


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 1), (64,), (48, 32), (3, 20, 16)])
def test_fusion_takes_what_sorting_would(shape):
    base = random(*shape)
    model = base + random(*shape, seed=1, scale=0.1)
    torch.testing.assert_close(arcee_fusion(base, model[None]), fused(base, model))


def test_fusion_of_a_tensor_of_many_tiles(tmp_path):
    base = {"w": random(1100, 700), "v": random(300_000)}
    model = {name: (each + random(*each.shape, seed=1, scale=0.05)).bfloat16().float() for name, each in base.items()}
    a, b = (surgeon.open(write_checkpoint(tmp_path / name, each, None)) for name, each in (("a", base), ("b", model)))
    surgeon.apply(surgeon.merge("arcee_fusion", [b], base_model=a), tmp_path / "out")
    out = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in out.items():
        assert torch.equal(value != base[name], fused(base[name], model[name]) != base[name])
        assert 0.01 < float((value != base[name]).float().mean()) < 0.3


def test_the_divergence_is_no_noise_where_float32_would_be():
    base = random(4, 1000, scale=0.02)
    close = base + random(4, 1000, seed=1, scale=1e-5)
    p = torch.softmax(close.double(), -1)
    second_order = (p * (close - base).double() ** 2).sum(-1) / 2 - (p * (close - base).double()).sum(-1) ** 2 / 2
    assert torch.allclose(divergence(base, close).double().flatten(), second_order, rtol=1e-3)
    assert not torch.allclose(divergence(base, close, torch.float32).double().flatten(), second_order, rtol=0.05)


def test_passthrough_copies_what_it_does_not_scale(tmp_path):
    made = {"a.mlp": random(3, 4).bfloat16(), "a.attn": random(3, 4, seed=1).bfloat16()}
    model = surgeon.open(write_checkpoint(tmp_path / "a", made, None))
    half = surgeon.merge("passthrough", [model], scale=Rules((Rule("*mlp", exact(0.5)), Rule(None, exact(1)))))
    plan = surgeon.plan(half)
    assert {target.name: target.action for target in plan.targets} == {"a.mlp": "compute", "a.attn": "copy"}
    surgeon.apply(half, tmp_path / "out")
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(out["a.mlp"], made["a.mlp"] / 2)
    assert torch.equal(out["a.attn"], made["a.attn"])
