"""The shipped adapters on the real SmolLM2: base + adapter, as written, is what PEFT merges."""

import gc
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import surgeon
from surgeon.testing.toys import read_checkpoint

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore::UserWarning")]

ADAPTERS = Path(__file__).resolve().parents[2] / "recipes" / "adapters"
#: The roundings of a product of eight terms, of its scale and of the sum, in units of the largest number involved.
ROUNDINGS = 4 * 2.0**-24


def merged_by_peft(base, adapter, dtype):
    """The tensors that PEFT merges to; it makes the factors float32 whatever they are stored in."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return {name: tensor.detach() for name, tensor in merged.state_dict().items()}


def written(base, adapter, out, dtype):
    surgeon.apply(surgeon.open(base) + 1.0 * surgeon.open(adapter), out, dtype=dtype, threads=2)
    return read_checkpoint(out)


@pytest.mark.parametrize("name", ["json", "sql", "initials"])
def test_equals_what_peft_merges(smollm2, tmp_path, name):
    start = load_file(smollm2 / "model.safetensors")
    touched = {
        key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
        for key in load_file(ADAPTERS / name / "adapter_model.safetensors")
        if "lora_A" in key
    }
    found = written(smollm2, ADAPTERS / name, tmp_path / "wide", "float32")
    expected = merged_by_peft(smollm2, ADAPTERS / name, torch.float32)
    assert touched and found.keys() == start.keys()
    for key, tensor in found.items():
        before = start[key].float()
        if key not in touched:
            assert torch.equal(tensor, before), key
            continue
        assert not torch.equal(tensor, before), key
        assert (tensor - expected[key]).abs().max() <= ROUNDINGS * expected[key].abs().max(), key
    del expected
    gc.collect()

    narrow = written(smollm2, ADAPTERS / name, tmp_path / "narrow", "bfloat16")
    expected = merged_by_peft(smollm2, ADAPTERS / name, torch.bfloat16)
    for key, tensor in narrow.items():
        assert torch.equal(tensor, found[key].bfloat16()), key
        if key not in touched:
            assert torch.equal(tensor, start[key]), key
            continue
        # PEFT rounds the update before it adds it: that rounding, and the sum falling on the other side of a tie.
        update, size = (found[key] - start[key].float()).abs(), torch.maximum(tensor.abs(), expected[key].abs())
        assert ((tensor - expected[key]).abs() <= 2.0**-8 * (update + 2 * size)).all(), key


def test_the_merge_answers_as_pefts_does(smollm2, tmp_path):
    """All three at once: the logits of the folder as transformers loads it."""
    expr = sum((surgeon.open(ADAPTERS / name) for name in ("json", "sql", "initials")), surgeon.open(smollm2))
    surgeon.apply(expr, tmp_path / "out", dtype="float32", threads=2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    for name in ("json", "sql", "initials"):
        model = PeftModel.from_pretrained(model, str(ADAPTERS / name)).merge_and_unload()
    out = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(100, 3300, 100)[None]
    with torch.no_grad():
        found, expected = out.eval()(ids).logits, model.eval()(ids).logits
    assert (found - expected).norm() <= 1e-5 * expected.norm()
