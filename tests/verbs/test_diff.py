"""Two checkpoints compared."""

import json

import pytest
import torch
from safetensors.torch import save_file

import surgeon


@pytest.fixture
def folder(tmp_path):
    def make(name, tensors, config=None):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
        (tmp_path / name / "config.json").write_text(json.dumps(config or {"hidden_size": 64}))
        return tmp_path / name

    return make


def weights(dtype=torch.bfloat16, layers=6):
    torch.manual_seed(0)
    found = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(96, 64).to(dtype) for i in range(layers)}
    return found | {
        "model.embed_tokens.weight": torch.randn(50, 64).to(dtype),
        "model.norm.weight": torch.ones(64).to(dtype),
    }


def changed(tensors, change):
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    return tensors


def test_equal_models(folder):
    report = surgeon.diff(folder("a", weights()), folder("b", weights()))
    assert report.same
    assert report.explain().endswith("8 tensors, byte for byte.")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_low_rank_change_of_some_layers(folder, dtype):
    a = weights(dtype)

    def change(tensors):
        for layer in (3, 4, 5):
            name = f"model.layers.{layer}.mlp.up_proj.weight"
            tensors[name] = (tensors[name].float() + 0.1 * torch.randn(96, 5) @ torch.randn(5, 64)).to(dtype)

    b = changed(a, change)
    report = surgeon.diff(folder("a", a), folder("b", b))
    assert report.explain().splitlines()[-1] == "3 of 8 tensors differ, all in layers 3–5, rank ≤ 5."
    name = "model.layers.3.mlp.up_proj.weight"
    facts = report.to_dict()["differing"][name]
    one, other = a[name].double(), b[name].double()
    assert facts["relative"] == pytest.approx(float((other - one).norm() / one.norm()), rel=1e-12)
    assert facts["largest"] == float((other - one).abs().max())
    assert facts["changed"] == float((one != other).double().mean())
    assert set(report.to_dict()["layers"]) == {"layer 3", "layer 4", "layer 5"}
    assert set(report.to_dict()["patterns"]) == {"model.layers.*.mlp.up_proj.weight"}


def test_one_ulp(folder):
    def change(tensors):
        tensors["model.norm.weight"].view(torch.int16)[3] += 1

    facts = surgeon.diff(folder("a", weights()), folder("b", changed(weights(), change))).to_dict()["differing"]
    assert facts.keys() == {"model.norm.weight"}
    assert facts["model.norm.weight"]["ulps"] == 1
    assert facts["model.norm.weight"]["changed"] == 1 / 64


def test_nan_counts_as_changed(folder):
    def change(tensors):
        tensors["model.norm.weight"][:] = float("nan")

    report = surgeon.diff(folder("a", weights()), folder("b", changed(weights(), change)))
    facts = report.to_dict()["differing"]["model.norm.weight"]
    assert facts["nans"] == 64
    assert facts["changed"] == 1
    assert "1 hold NaN" in report.sentence()


def test_names_shapes_dtypes_and_config(folder):
    def change(tensors):
        tensors["extra"] = tensors.pop("model.norm.weight")
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:40]
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].float()

    b = folder("b", changed(weights(), change), {"hidden_size": 32})
    report = surgeon.diff(folder("a", weights()), b)
    found = report.to_dict()
    assert found["only_a"] == ["model.norm.weight"]
    assert found["only_b"] == ["extra"]
    assert found["shapes"] == {"model.embed_tokens.weight": ["BF16[50, 64]", "BF16[40, 64]"]}
    assert found["config"] == {"hidden_size": [64, 32]}
    assert found["differing"]["model.layers.0.mlp.up_proj.weight"]["dtype"] == "BF16 → F32"
    assert found["differing"]["model.layers.0.mlp.up_proj.weight"]["relative"] == 0
    assert "config.json differs in 1 key(s)" in report.sentence()
    json.dumps(found, allow_nan=False)


def test_integers_and_empty_tensors(folder):
    a = {"ids": torch.arange(10), "none": torch.empty(0, 4), "scalar": torch.tensor(1.0)}
    b = {"ids": torch.arange(10) + 256, "none": torch.empty(0, 4), "scalar": torch.tensor(2.0)}
    report = surgeon.diff(folder("a", a), folder("b", b))
    assert {item.name for item in report.differing} == {"ids", "scalar"}
    json.dumps(report.to_dict(), allow_nan=False)


def test_an_adapter_is_refused(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    save_file(
        {f"{prefix}.lora_A.weight": torch.ones(2, 64), f"{prefix}.lora_B.weight": torch.ones(96, 2)},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(surgeon.RefusedError, match="adapter") as refused:
        surgeon.diff(folder("a", weights()), adapter)
    assert refused.value.hint
