"""FP8 checkpoints: read, edited, merged and written again; everything that is not edited keeps its bytes."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import surgeon
from surgeon.artifacts.direction import direction
from surgeon.space.editing_api import edit
from tests.support.quantised_toys import (
    WIDTH,
    fp8_block,
    fp8_compressed,
    full,
    is_linear,
    read_in_full,
    rewrite,
    tensors_of,
)

TOKENS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(5))
MAKERS = {
    "block": fp8_block,
    "block, scales in bf16": lambda folder, seed=0: fp8_block(folder, seed, scale_dtype=torch.bfloat16),
    "block, powers of two": lambda folder, seed=0: fp8_block(folder, seed, scale_fmt="ue8m0"),
    "channel": lambda folder, seed=0: fp8_compressed(folder, seed),
    "tensor": lambda folder, seed=0: fp8_compressed(folder, seed, per="tensor"),
}


def ablated(folder, **given):
    rows = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(3))
    return edit("ablate", surgeon.open(folder), directions=direction(rows, at="block.0"), **given), rows / rows.norm()


def same_bytes(one, other):
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.fixture(params=MAKERS)
def source(request, tmp_path):
    return MAKERS[request.param](tmp_path / "source")


def writers(names):
    return {name for name in names if name.endswith(("o_proj.weight", "down_proj.weight"))}


def test_an_edit_rewrites_what_it_edits_and_nothing_else(source, tmp_path):
    expr, row = ablated(source)
    receipt = surgeon.apply(expr, tmp_path / "out")
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    edited = writers(before) | {"model.embed_tokens.weight"}
    touched = {name for name in before if not same_bytes(before[name], after[name])}
    assert {name for name in touched if not name.endswith(("_scale", "_scale_inv"))} == edited
    assert {name.removesuffix("_inv").removesuffix("_scale") for name in touched} == edited
    one, other = read_in_full(source), read_in_full(tmp_path / "out")
    ratios = {name: (row @ other[name]).norm() / (row @ one[name]).norm() for name in writers(before)}
    assert max(ratios.values()) <= 1e-4
    assert (source / "config.json").read_bytes() == (tmp_path / "out/config.json").read_bytes()
    errors = {name: one["error"] for name, one in receipt.content["tensors"].items() if "error" in one}
    assert errors.keys() == writers(before)
    for name, error in errors.items():
        exact = one[name] - row.T @ (row @ one[name])
        assert error == pytest.approx(((other[name] - exact).norm() / exact.norm()).item(), rel=1e-3)
        assert 0.01 < error < 0.04
    assert f"{max(errors.values()):.1e}" in receipt.summary()
    assert f"‖RᵀW'‖/‖RᵀW‖ at most {max(ratios.values()):.1e} is back" in receipt.summary()


def test_what_is_written_is_proven_and_a_changed_scale_is_noticed(source, tmp_path):
    expr, _ = ablated(source)
    surgeon.apply(expr, tmp_path / "out")
    verdict = surgeon.verify(tmp_path / "out", full=True)
    assert verdict.exit_code == 0, verdict.explain()
    assert "‖Ŵ − W‖/‖W‖" in verdict.explain()
    zeros = verdict.checked["zeros"]
    assert max(zeros[name] for name in writers(zeros)) <= 1e-4
    assert surgeon.verify(tmp_path / "out", recipe=tmp_path / "out/surgeon/recipe.yaml").exit_code == 0
    tensors = tensors_of(tmp_path / "out")
    spoiled = next(name for name in tensors if "down_proj" in name and "scale" in name)
    tensors[spoiled] = (tensors[spoiled].float() * 2).to(tensors[spoiled].dtype)
    rewrite(tmp_path / "out", tensors)
    wrong = {finding.subject for finding in surgeon.verify(tmp_path / "out").findings}
    assert spoiled in wrong


@pytest.mark.parametrize("options", [{"threads": 2}, {"block": 4096 * 4}, {"memory": "1GB", "threads": 1}])
def test_the_same_bytes_whatever_the_blocks_and_threads(options, tmp_path):
    expr, _ = ablated(fp8_block(tmp_path / "source"))
    surgeon.apply(expr, tmp_path / "one", threads=1)
    surgeon.apply(expr, tmp_path / "two", **options)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


@torch.no_grad()
def logits(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(TOKENS).logits


def test_transformers_loads_the_edited_model(tmp_path):
    expr, _ = ablated(fp8_block(tmp_path / "source"))
    surgeon.apply(expr, tmp_path / "out")
    tensors = {name: value.to(torch.bfloat16) for name, value in read_in_full(tmp_path / "out").items()}
    plain = rewrite(full(tmp_path / "plain"), tensors)
    torch.testing.assert_close(logits(tmp_path / "out"), logits(plain), rtol=2e-2, atol=2e-2)


def test_dequantised_it_is_an_ordinary_model(source, tmp_path):
    (source / "hf_quant_config.json").write_text("{}")
    expr, row = ablated(source)
    surgeon.apply(expr, tmp_path / "out", dequantize=True)
    one, after = read_in_full(source), tensors_of(tmp_path / "out")
    assert after.keys() == one.keys()
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    for name, value in after.items():
        expected = one[name]
        if name in writers(after):
            expected = expected - row.T @ (row @ expected)
            torch.testing.assert_close(value.float(), expected, rtol=8e-3, atol=1e-5)
        elif is_linear(name):
            assert torch.equal(value, expected.to(torch.bfloat16))
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    assert not (tmp_path / "out/hf_quant_config.json").exists()
    assert surgeon.verify(tmp_path / "out", full=True).exit_code == 0
    logits(tmp_path / "out")


def test_without_an_edit_dequantising_is_the_value_of_the_codes(tmp_path):
    folder = fp8_block(tmp_path / "source")
    plan = surgeon.plan(surgeon.open(folder), dequantize=True)
    assert "config.json: quantization_config: left out" in plan.explain()
    surgeon.apply(surgeon.open(folder), tmp_path / "out", dequantize=True, dtype="float32")
    after, expected = tensors_of(tmp_path / "out"), read_in_full(folder)
    assert all(torch.equal(after[name], expected[name]) for name in after)


def test_a_copy_is_a_copy(source, tmp_path):
    surgeon.apply(surgeon.open(source), tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_merges_of_quantised_models(tmp_path):
    """The base says how the result is stored: FP8 of FP8 and bf16; bf16 of a bf16 base."""
    base, other = fp8_block(tmp_path / "base"), full(tmp_path / "other", 1)
    mix = surgeon.merge("linear", [surgeon.open(base), surgeon.open(other)], weight=[0.6, 0.4])
    surgeon.apply(mix, tmp_path / "out")
    assert tensors_of(tmp_path / "out").keys() == tensors_of(base).keys()
    one, two, found = read_in_full(base), read_in_full(other), read_in_full(tmp_path / "out")
    for name in found:
        expected = 0.6 * one[name] + 0.4 * two[name]
        off = (found[name] - expected).norm() / expected.norm()
        assert off < (0.035 if is_linear(name) else 0.003), name
    assert surgeon.verify(tmp_path / "out", full=True).exit_code == 0
    reverse = surgeon.merge("linear", [surgeon.open(other), surgeon.open(base)], weight=[0.4, 0.6])
    surgeon.apply(reverse, tmp_path / "plain")
    assert {value.dtype for value in tensors_of(tmp_path / "plain").values()} == {torch.bfloat16}


def test_a_scale_that_is_missing_or_does_not_fit_is_named(tmp_path):
    folder = fp8_block(tmp_path / "source")
    tensors = tensors_of(folder)
    name = "model.layers.1.mlp.down_proj.weight"
    expr, _ = ablated(folder)
    rewrite(folder, {**tensors, f"{name}_scale_inv": torch.ones(3, 3)})
    with pytest.raises(surgeon.MismatchError, match=rf"{name} F8_E4M3.* has the scale F32\[3, 3\]"):
        surgeon.plan(expr)
    del tensors[f"{name}_scale_inv"]
    rewrite(folder, tensors)
    with pytest.raises(surgeon.MismatchError, match=f"has no {name}_scale_inv"):
        surgeon.plan(expr)


def test_static_scales_of_activations_stay_and_are_never_merged(tmp_path):
    folder = fp8_compressed(tmp_path / "source", per="tensor")
    tensors = tensors_of(folder)
    static = {name.replace("weight", "input_scale"): torch.tensor([0.5]) for name in tensors if is_linear(name)}
    rewrite(folder, tensors | static)
    expr, _ = ablated(folder)
    surgeon.apply(expr, tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    assert all(torch.equal(after[name], value) for name, value in static.items())
    surgeon.apply(expr, tmp_path / "plain", dequantize=True)
    assert not static.keys() & tensors_of(tmp_path / "plain").keys()
    other = rewrite(fp8_compressed(tmp_path / "other", 1, per="tensor"), tensors | static)
    with pytest.raises(surgeon.MismatchError, match="input_scale scales the activations"):
        surgeon.plan(0.5 * surgeon.open(folder) + 0.5 * surgeon.open(other))


def test_dequantize_without_anything_quantised_is_refused(tmp_path):
    with pytest.raises(surgeon.RefusedError, match="no model of the recipe is quantised"):
        surgeon.plan(surgeon.open(full(tmp_path / "plain")), dequantize=True)
