"""Weights packed several to a byte: kept as they are, read in full, or refused with the reason."""

import json

import pytest
import torch
import transformers
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import surgeon
from surgeon.artifacts.direction import direction
from surgeon.space.editing_api import edit
from tests.support.quantised_toys import WIDTH, full, is_linear, rewrite, tensors_of

TOKENS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(5))


def ablated(folder, width=WIDTH, **given):
    rows = torch.randn(1, width, generator=torch.Generator().manual_seed(3))
    return edit("ablate", surgeon.open(folder), directions=direction(rows, at="block.0"), **given), rows / rows.norm()


def bytes_of(value):
    return value.contiguous().view(torch.uint8)


# -- gpt-oss ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpt_oss(tmp_path):
    """A gpt-oss with experts in MXFP4, as it is published."""
    config = transformers.GptOssConfig(
        vocab_size=64, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
        sliding_window=8, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value)
    model.bfloat16().save_pretrained(tmp_path / "source")
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name, value in tensors_of(tmp_path / "source").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, into, out = value.shape
            shape = experts, out, into // 32, 16
            tensors[f"{name}_blocks"] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.randint(118, 124, shape[:3], generator=generator, dtype=torch.uint8)
        else:
            tensors[name] = value
    about = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    return rewrite(tmp_path / "source", tensors, quantization_config=about)


def test_mxfp4_experts_stay_where_only_the_attention_is_edited(gpt_oss, tmp_path):
    expr, _ = ablated(gpt_oss, 64, writers=("attention",))
    surgeon.apply(expr, tmp_path / "out")
    before, after = tensors_of(gpt_oss), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    touched = {name for name in before if not torch.equal(bytes_of(before[name]), bytes_of(after[name]))}
    assert touched == {name for name in before if "o_proj" in name}
    assert surgeon.verify(tmp_path / "out", full=True).exit_code == 0


def test_an_edit_of_mxfp4_experts_is_refused_with_the_tensor_and_the_way_on(gpt_oss):
    expr, _ = ablated(gpt_oss, 64)
    with pytest.raises(surgeon.MismatchError) as told:
        surgeon.plan(expr)
    assert "model.layers.0.mlp.experts.down_proj of " in str(told.value)
    assert "stored as MXFP4" in str(told.value)
    assert "--dequantize" in str(told.value)


def test_mxfp4_in_full_is_what_transformers_reads(gpt_oss, tmp_path):
    surgeon.apply(surgeon.open(gpt_oss), tmp_path / "full", dequantize=True)
    stored, after = tensors_of(gpt_oss), tensors_of(tmp_path / "full")
    for name in ("model.layers.0.mlp.experts.down_proj", "model.layers.1.mlp.experts.gate_up_proj"):
        expected = convert_moe_packed_tensors(stored[f"{name}_blocks"], stored[f"{name}_scales"])
        assert torch.equal(after[name], expected)
    assert "quantization_config" not in json.loads((tmp_path / "full/config.json").read_text())
    config = transformers.Mxfp4Config(dequantize=True)
    load = transformers.AutoModelForCausalLM.from_pretrained
    with torch.no_grad():
        theirs = load(gpt_oss, quantization_config=config, dtype=torch.bfloat16)(TOKENS).logits
        mine = load(tmp_path / "full", dtype=torch.bfloat16)(TOKENS).logits
    assert torch.equal(theirs, mine)


def test_mxfp4_experts_are_edited_in_full(gpt_oss, tmp_path):
    expr, row = ablated(gpt_oss, 64)
    surgeon.apply(expr, tmp_path / "out", dequantize=True, dtype="float32")
    after = tensors_of(tmp_path / "out")
    for layer in range(2):
        for name in ("down_proj", "down_proj_bias"):
            value = after[f"model.layers.{layer}.mlp.experts.{name}"]
            assert (value @ row.T).abs().max() < 1e-5 * value.abs().max() * 64
    assert surgeon.verify(tmp_path / "out", full=True).exit_code == 0


# -- compressed-tensors and AWQ ---------------------------------------------------------------------------------------


def compressed(folder, fmt, **args):
    """A Llama packed by compressed-tensors itself."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    group = {"targets": ["Linear"], "weights": {"symmetric": True, "strategy": "group", **args}}
    scheme, tensors, expected = QuantizationScheme.model_validate(group), {}, {}
    codec = BaseCompressor.get_value_from_registry(fmt)
    for name, value in tensors_of(full(folder)).items():
        if not is_linear(name):
            tensors[name] = value
            continue
        groups = value.float().unflatten(1, (-1, args["group_size"])).abs().amax(-1)
        state = {"weight": value.float(), "weight_scale": groups / (7.0 if args["type"] == "int" else 6.0)}
        if fmt.startswith("nvfp4"):
            state["weight_global_scale"] = torch.tensor([448 * 6 / value.float().abs().max()])
            state["weight_scale"] = (state["weight_scale"] * state["weight_global_scale"]).to(torch.float8_e4m3fn)
            scheme.weights.scale_dtype = torch.float8_e4m3fn
            state["weight_scale"] = state["weight_scale"].float()
        packed = codec.compress(state, scheme)
        module = name.removesuffix("weight")
        tensors |= {module + leaf: part for leaf, part in packed.items()}
        expected[name] = value.float()
    about = {"quant_method": "compressed-tensors", "format": fmt, "config_groups": {"group_0": group},
             "quantization_status": "compressed", "ignore": ["lm_head"]}  # fmt: skip
    return rewrite(folder, tensors, quantization_config=about), expected


INT4 = {"num_bits": 4, "type": "int", "group_size": 128}
NVFP4 = {"num_bits": 4, "type": "float", "group_size": 16}
CASES = [("pack-quantized", INT4, 0.15), ("nvfp4-pack-quantized", {**NVFP4, "strategy": "tensor_group"}, 0.12)]


@pytest.mark.parametrize(("fmt", "args", "most"), CASES, ids=[case[0] for case in CASES])
def test_compressed_tensors_in_full(fmt, args, most, tmp_path):
    source, expected = compressed(tmp_path / "source", fmt, **args)
    with pytest.raises(surgeon.MismatchError, match=f"stored as compressed-tensors {fmt}"):
        surgeon.plan(ablated(source)[0])
    surgeon.apply(surgeon.open(source), tmp_path / "full", dequantize=True)
    after = tensors_of(tmp_path / "full")
    assert not [name for name in after if "_packed" in name or "_scale" in name or "_shape" in name]
    for name, value in expected.items():
        assert after[name].shape == value.shape
        assert (after[name].float() - value).norm() < most * value.norm()
    expr, _ = ablated(source)
    surgeon.apply(expr, tmp_path / "out", dequantize=True)
    assert surgeon.verify(tmp_path / "out", full=True).exit_code == 0
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_awq_in_full(tmp_path):
    """Packed here as AutoAWQ's GEMM layout is described: eight numbers a word, in the order 0 2 4 6 1 3 5 7."""
    pytest.importorskip("compressed_tensors")
    folder, tensors, expected = full(tmp_path / "source"), {}, {}
    generator = torch.Generator().manual_seed(2)
    for name, value in tensors_of(folder).items():
        if not is_linear(name):
            tensors[name] = value
            continue
        out, into = value.shape
        numbers = torch.randint(0, 16, (into, out), generator=generator)
        zeros = torch.randint(0, 16, (into // 64, out), generator=generator)
        step = (torch.rand(into // 64, out, generator=generator) * 0.01).half()
        module = name.removesuffix("weight")
        tensors |= {f"{module}qweight": words(numbers), f"{module}qzeros": words(zeros), f"{module}scales": step}
        spread = zeros.repeat_interleave(64, 0), step.float().repeat_interleave(64, 0)
        expected[name] = ((numbers - spread[0]).float() * spread[1]).T
    about = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
    rewrite(folder, tensors, quantization_config=about)
    surgeon.apply(surgeon.open(folder), tmp_path / "full", dequantize=True, dtype="float32")
    after = tensors_of(tmp_path / "full")
    assert all(torch.equal(after[name], value) for name, value in expected.items())
    assert not [name for name in after if name.endswith(("qweight", "qzeros", "scales"))]


def words(numbers):
    """Eight 4-bit numbers a 32-bit word."""
    eights = numbers.unflatten(1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]].long()
    word = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)


# -- what nothing here reads ------------------------------------------------------------------------------------------

REFUSED = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, "GPTQ, 4 bit", "gptqmodel"),
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes NF4", "bitsandbytes"),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt NVFP4", "convert it"),
    "unknown": ({"quant_method": "quip"}, "quip", "not known here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_format_and_the_way_on(case, tmp_path):
    about, called, told = REFUSED[case]
    folder = full(tmp_path / "source")
    rewrite(folder, tensors_of(folder), quantization_config=about)
    for what, options in ((ablated(folder)[0], {}), (surgeon.open(folder), {"dequantize": True})):
        with pytest.raises(surgeon.MismatchError) as error:
            surgeon.plan(what, **options)
        assert f"is quantised ({called})" in str(error.value)
        assert told in str(error.value)
    assert all(target.action == "copy" for target in surgeon.plan(surgeon.open(folder)).targets)
