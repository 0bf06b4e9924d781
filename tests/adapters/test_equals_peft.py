"""base + 1.0 * adapter, as written, is what PEFT's merge_and_unload gives: every tensor, and the model that loads."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.testing.toys import read_checkpoint
from tests.support.peft_toys import CONV1D, GPT2, LLAMA, gpt2, llama, loaded_by_peft, make, store_as

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "RuntimeWarning")]

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
PREFIXES = ("", "model.", "transformer.")
#: The roundings of a product of a few terms, of its scale and of the sum, in units of the largest number involved.
ROUNDINGS = 4 * 2.0**-24


def apply(base, adapter, out, **options):
    expr = surgeon.open(base) + 1.0 * surgeon.open(adapter)
    surgeon.apply(expr, out, threads=1, **options)
    return read_checkpoint(out)


def named(state, name):
    """A tensor of the merged model by the name that the base has for it, with or without its class's prefix."""
    short = next((name.removeprefix(p) for p in PREFIXES[1:] if name.startswith(p)), name)
    return next(state[p + short] for p in PREFIXES if p + short in state)


def compare(base, found, state):
    """Every tensor within fp32 rounding, what PEFT left alone byte-equal; how many were changed."""
    start = read_checkpoint(base)
    assert found.keys() == start.keys()
    changed = 0
    for name, before in start.items():
        expected, tensor = named(state, name), found[name]
        assert tensor.dtype == before.dtype and tensor.shape == before.shape
        if torch.equal(expected, before):
            assert torch.equal(tensor.view(torch.uint8), before.view(torch.uint8)), name
            continue
        changed += 1
        largest = max(t.abs().max().item() for t in (before, expected, expected - before))
        assert (tensor - expected).abs().max() <= ROUNDINGS * largest, name
    return changed


def check_model(out, merged):
    """The folder loads as it is and computes what the merged model computes."""
    written, report = type(merged).from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        found, expected = written.eval()(IDS)[0], merged.eval()(IDS)[0]
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def check(root, made, changes):
    found = apply(made.base, made.adapter, root / "out")
    assert compare(made.base, found, made.state) == changes
    for file in ("config.json", "generation_config.json"):
        if (made.base / file).exists():
            assert (root / "out" / file).read_bytes() == (made.base / file).read_bytes()
    check_model(root / "out", made.merged)


@pytest.mark.parametrize("feature", LLAMA)
def test_llama(tmp_path, feature):
    config, changes = LLAMA[feature]
    check(tmp_path, make(tmp_path, llama(bias="bias" in config), **config), changes)


@pytest.mark.parametrize("feature", GPT2)
def test_gpt2(tmp_path, feature):
    config, changes = GPT2[feature]
    check(tmp_path, make(tmp_path, gpt2(), **config), changes)


def test_tied_llama_embedding(tmp_path):
    check(tmp_path, make(tmp_path, llama(tied=True), target_modules=["embed_tokens", "q_proj"], r=3), 3)


def test_untied_gpt2_head_beside_conv1d(tmp_path):
    check(tmp_path, make(tmp_path, gpt2(tied=False), target_modules=["c_proj", "lm_head"], fan_in_fan_out=True), 5)


@pytest.mark.parametrize("feature", ["bias all", "bias lora_only"])
@pytest.mark.parametrize(("build", "features"), [(lambda: llama(bias=True), LLAMA), (gpt2, GPT2)])
def test_biases_in_the_older_spelling(tmp_path, build, features, feature):
    """PEFT once had no base_layer in its names."""

    def respell(folder):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        assert any("base_layer.bias" in name for name in tensors)
        save_file({name.replace("base_layer.bias", "bias"): tensor for name, tensor in tensors.items()}, path)

    config, changes = features[feature]
    check(tmp_path, make(tmp_path, build(), respell, **config), changes)


def bare(model):
    """The model without its head, whose tensors bear no prefix."""
    return model.transformer if hasattr(model, "transformer") else model.model


CLASSES = {
    "llama": (llama, {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["norm"], "r": 4}),
    "gpt2": (gpt2, {"target_modules": [*CONV1D, "wte"], "fan_in_fan_out": True, "bias": "all", "r": 4}),
}


@pytest.mark.parametrize("family", CLASSES)
def test_base_stored_without_the_prefix(tmp_path, family):
    build, config = CLASSES[family]
    bare(build()).save_pretrained(tmp_path / "base")
    made = make(tmp_path, build(), save_base=False, **config)
    assert not any(name.startswith(PREFIXES[1:]) for name in read_checkpoint(made.base))
    assert compare(made.base, apply(made.base, made.adapter, tmp_path / "out"), made.state) >= 4
    check_model(tmp_path / "out", bare(made.merged))


@pytest.mark.parametrize("family", CLASSES)
def test_adapter_made_without_the_prefix(tmp_path, family):
    build, config = CLASSES[family]
    build().save_pretrained(tmp_path / "base")
    made = make(tmp_path, bare(build()), save_base=False, **config)
    found = apply(made.base, made.adapter, tmp_path / "out")
    head = {name: tensor for name, tensor in read_checkpoint(made.base).items() if "lm_head" in name}
    assert compare(made.base, found, made.state | head) >= 4
    check_model(tmp_path / "out", build_with(build(), made.merged))


def build_with(model, body):
    """A model with another body under its head."""
    bare(model).load_state_dict(body.state_dict())
    return model


FACTORS = {
    "llama": (llama, LLAMA["patterns"][0]),
    "llama everything": (lambda: llama(bias=True), LLAMA["everything"][0]),
    "gpt2": (gpt2, GPT2["plain"][0]),
    "gpt2 dora embedding": (gpt2, GPT2["dora embedding"][0]),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", FACTORS)
def test_factors_in_half_precision(tmp_path, case, dtype):
    build, config = FACTORS[case]
    made = make(tmp_path, build(), store_as(dtype), **config)
    merged = loaded_by_peft(build(), made.adapter)
    found = apply(made.base, made.adapter, tmp_path / "out")
    assert compare(made.base, found, merged.state_dict()) >= 3
    check_model(tmp_path / "out", merged)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_is_rounded_once(tmp_path, dtype):
    """PEFT rounds the update before it adds it; here the sum alone is rounded."""
    model = llama().to(dtype)
    model.save_pretrained(tmp_path / "base")
    made = make(tmp_path, model.float(), save_base=False, **LLAMA["plain"][0])
    state, start = made.state, read_checkpoint(made.base)
    found = apply(made.base, made.adapter, tmp_path / "out")
    wide = apply(made.base, made.adapter, tmp_path / "wide", dtype="float32")
    assert all(start[name].dtype == dtype and wide[name].dtype == torch.float32 for name in start)
    for name, tensor in found.items():
        assert torch.equal(tensor, wide[name].to(dtype)), name
        torch.testing.assert_close(wide[name], state[name], rtol=0, atol=ROUNDINGS * state[name].abs().max().item())
    peft = loaded_by_peft(type(model).from_pretrained(made.base, dtype=dtype), made.adapter).state_dict()
    ulp = torch.finfo(dtype).eps
    for name, tensor in found.items():
        assert (tensor.float() - peft[name].float()).abs().max() <= ulp * state[name].abs().max(), name
