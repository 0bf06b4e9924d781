"""Exported adapters: PEFT on the base gives the model they were made of."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import surgeon
from surgeon.artifacts.direction import direction
from surgeon.ship.adapter import served_rank
from surgeon.ship.base_hash import model_hash
from surgeon.store.checkpoint import open_checkpoint
from surgeon.testing.toys import read_checkpoint, toy_llama, write_checkpoint
from surgeon_cli import installation, main
from tests.support.family_toys import toy

IDS = torch.arange(3, 19)[None]


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = model if adapter is None else PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return toy_llama(tmp_path / "base", 1)


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    """A fine-tune of the base's matrices alone, of full rank."""
    tensors = {
        name: value + 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(7))
        if "layers" in name and value.ndim == 2
        else value
        for name, value in read_checkpoint(base).items()
    }
    return write_checkpoint(tmp_path / "tuned", tensors)


def test_a_full_rank_adapter_is_the_fine_tune(base, tuned, tmp_path):
    report = surgeon.export_adapter(tuned, tmp_path / "adapter", base=base, error=1e-6)
    assert torch.allclose(logits(base, tmp_path / "adapter"), logits(tuned), atol=1e-4)
    assert report.error < 1e-6 and len(report.tensors) == 21


def test_an_ablation_without_the_embedding_is_an_adapter_of_its_rank(base, tmp_path):
    model = surgeon.edit(
        "ablate", surgeon.open(base), directions=direction(torch.randn(2, 32), at="block.1"),
        writers=("attention", "mlp"),
    )  # fmt: skip
    report = surgeon.export_adapter(model, tmp_path / "adapter", error=1e-4)
    assert {rank for rank, _ in report.tensors.values()} == {2}
    surgeon.apply(model, tmp_path / "out")
    assert torch.allclose(logits(base, tmp_path / "adapter"), logits(tmp_path / "out"), atol=1e-4)


def test_arithmetic_of_adapters_stays_in_factors(base, tuned, tmp_path):
    surgeon.export_adapter(tuned, tmp_path / "one", base=base, rank=3)
    surgeon.export_adapter(tuned, tmp_path / "two", base=base, rank=2)
    model = surgeon.open(base) + 0.5 * surgeon.open(tmp_path / "one") - 2 * surgeon.open(tmp_path / "two")
    report = surgeon.export_adapter(model, tmp_path / "sum")
    assert {rank for rank, _ in report.tensors.values()} == {5} and report.error == 0
    surgeon.apply(model, tmp_path / "out")
    assert torch.allclose(logits(base, tmp_path / "sum"), logits(tmp_path / "out"), atol=1e-4)
    # Of the sum of the two, the second lies within the span of the first.
    assert surgeon.export_adapter(model, tmp_path / "cut", error=1e-5).tensors.popitem()[1][0] == 3


def test_merged_adapters_are_merged_through_their_products(base, tuned, tmp_path):
    for name, rank in (("one", 3), ("two", 2)):
        surgeon.export_adapter(tuned, tmp_path / name, base=base, rank=rank)
    members = [surgeon.open(tmp_path / "one"), surgeon.open(tmp_path / "two")]
    merged = surgeon.merge("ties", members, base_model=surgeon.open(base), density=0.5)
    surgeon.export_adapter(merged, tmp_path / "ties", error=1e-6)
    surgeon.apply(merged, tmp_path / "out")
    assert torch.allclose(logits(base, tmp_path / "ties"), logits(tmp_path / "out"), atol=1e-4)


def test_conv1d_and_names_of_gpt2(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    tensors = read_checkpoint(tmp_path / "base")
    moved = {n: v + 0.1 * torch.randn_like(v) if "c_" in n and v.ndim == 2 else v for n, v in tensors.items()}
    # The Hub's gpt2 has no prefix before its blocks.
    for folder, held in (("base", tensors), ("tuned", moved)):
        held = {name.removeprefix("transformer."): value for name, value in held.items()}
        write_checkpoint(tmp_path / folder, held, config.to_dict())
    surgeon.export_adapter(tmp_path / "tuned", tmp_path / "adapter", base=tmp_path / "base", error=1e-6)
    assert torch.allclose(logits(tmp_path / "base", tmp_path / "adapter"), logits(tmp_path / "tuned"), atol=1e-4)


def test_what_no_adapter_carries_is_listed_and_may_be_dropped(base, tmp_path):
    tuned = toy_llama(tmp_path / "all", 5, base=base)
    with pytest.raises(surgeon.MismatchError, match=r"(?s)cannot hold 8 of the changes.*embed_tokens.*embedding"):
        surgeon.export_adapter(tuned, tmp_path / "adapter", base=base, rank=2)
    assert not (tmp_path / "adapter").exists()
    report = surgeon.export_adapter(tuned, tmp_path / "adapter", base=base, rank=2, drop=["*norm*", "*embed*"])
    assert len(report.dropped) == 8
    assert not any("norm" in name for name in load_file(tmp_path / "adapter/adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("tuned", "name the base: --base"),
        ("tuned --base ./base", "say how much to keep"),
        ("base --base ./base --rank 2", "the model is its base"),
        ("tuned --base ./base --error 1.5", "is no share"),
        ("tuned --base ./nowhere --rank 2", "no such file"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(base, tuned, tmp_path, monkeypatch, capfd, arguments, says):
    monkeypatch.chdir(tmp_path)
    what, *others = arguments.split()
    monkeypatch.setattr("sys.argv", ["surgeon", "export", "adapter", f"./{what}", "-o", "adapter", *others])
    monkeypatch.setattr(installation, "check", lambda: None)
    with pytest.raises(SystemExit) as end:
        main.run()
    assert end.value.code == 2
    assert says in capfd.readouterr().err
    assert not (tmp_path / "adapter").exists()


def test_a_merge_in_core_space_stays_in_factors(base, tuned, tmp_path):
    """What adapters are merged to without their product is exported without it: no rank has to be named."""
    for name, rank in (("one", 3), ("two", 2)):
        surgeon.export_adapter(tuned, tmp_path / name, base=base, rank=rank)
    members = [surgeon.open(tmp_path / "one"), surgeon.open(tmp_path / "two")]
    merged = surgeon.merge("tsv_m", members, base_model=surgeon.open(base))
    report = surgeon.export_adapter(merged, tmp_path / "tsv")
    assert {rank for rank, _ in report.tensors.values()} == {5} and report.error == 0
    surgeon.apply(merged, tmp_path / "out")
    assert torch.allclose(logits(base, tmp_path / "tsv"), logits(tmp_path / "out"), atol=1e-4)


def test_an_edit_stays_in_factors_and_needs_no_rank(base, tmp_path):
    """Also edit upon edit, and an adapter added to an edited model."""
    turned = direction(torch.randn(2, 32, generator=torch.Generator().manual_seed(2)), at="block.1")
    other = direction(torch.ones(1, 32), at="block.0")
    parts = {"writers": ("attention", "mlp"), "strength": 1.5}
    model = surgeon.edit("ablate", surgeon.edit("ablate", surgeon.open(base), directions=turned, **parts),
                         directions=other, **parts)  # fmt: skip
    report = surgeon.export_adapter(model, tmp_path / "adapter")
    assert {rank for rank, _ in report.tensors.values()} == {3} and report.error == 0
    surgeon.apply(model, tmp_path / "out")
    assert torch.allclose(logits(base, tmp_path / "adapter"), logits(tmp_path / "out"), atol=1e-4)


def test_the_receipt_names_the_base_and_the_error(base, tuned, tmp_path):
    report = surgeon.export_adapter(tuned, tmp_path / "adapter", base=base, rank=9, dtype="bfloat16")
    receipt = json.loads((tmp_path / "adapter/surgeon.json").read_text())
    assert receipt["export"] == "adapter" and receipt["error"] == report.error
    assert receipt["max_lora_rank"] == 16 and "--max-lora-rank 16" in report.summary()
    assert receipt["base"]["hash"] == model_hash(open_checkpoint(base, "base"), None)
    held = load_file(tmp_path / "adapter/adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (held[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    change = (read_checkpoint(tuned)[f"{name}.weight"] - read_checkpoint(base)[f"{name}.weight"]).double()
    error = float((change - b @ a).norm() / change.norm())
    assert receipt["tensors"][f"{name}.weight"]["error"] == pytest.approx(error, rel=1e-3)
    assert (tmp_path / "adapter/adapter_model.safetensors").stat().st_mode & 0o777 == 0o644


def test_no_vllm_takes_a_rank_beyond_its_largest():
    assert [served_rank(rank) for rank in (1, 2, 33, 512, 513)] == [1, 8, 64, 512, None]


def moved(folder, pattern, tmp_path):
    """A fine-tune of the tensors whose name ends so, and of these alone."""
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator) if name.endswith(pattern) else value
        for name, value in read_checkpoint(folder).items()
    }
    return write_checkpoint(tmp_path / "moved", tensors, json.loads((folder / "config.json").read_text()))


def test_a_router_is_refused(tmp_path):
    base = toy(tmp_path / "base", "qwen3_moe")
    with pytest.raises(surgeon.MismatchError, match=r"mlp\.gate\.weight is a router"):
        surgeon.export_adapter(moved(base, "gate.weight", tmp_path), tmp_path / "adapter", base=base, rank=2)


@pytest.mark.parametrize("what", ["down_proj", ("down_proj", "gate_up_proj")])
def test_experts_in_one_tensor_as_peft_has_them(tmp_path, what):
    base = toy(tmp_path / "base", "qwen3_moe fused")
    tuned = moved(base, what, tmp_path)
    surgeon.export_adapter(tuned, tmp_path / "adapter", base=base, error=1e-6, experts="fused")
    assert torch.allclose(logits(base, tmp_path / "adapter"), logits(tuned), atol=1e-3)


def test_experts_in_one_tensor_as_modules_each(tmp_path):
    base = toy(tmp_path / "base", "qwen3_moe fused")
    tuned = moved(base, ("down_proj", "gate_up_proj"), tmp_path)
    surgeon.export_adapter(tuned, tmp_path / "adapter", base=base, error=1e-6)
    held = load_file(tmp_path / "adapter/adapter_model.safetensors")
    before, after = read_checkpoint(base), read_checkpoint(tuned)
    for expert in range(4):
        at = f"base_model.model.model.layers.1.mlp.experts.{expert}"
        down, gate, up = (
            held[f"{at}.{part}.lora_B.weight"] @ held[f"{at}.{part}.lora_A.weight"]
            for part in ("down_proj", "gate_proj", "up_proj")
        )
        for part, found in (("down_proj", down), ("gate_up_proj", torch.cat([gate, up]))):
            name = f"model.layers.1.mlp.experts.{part}"
            assert torch.allclose(found, after[name][expert] - before[name][expert], atol=1e-5)


@pytest.mark.parametrize("what", ["down_proj", "gate_up_proj"])
def test_experts_stored_inputs_first_are_refused(tmp_path, what):
    base = toy(tmp_path / "base", "gpt_oss")
    with pytest.raises(surgeon.MismatchError, match=rf"experts\.{what} holds its experts as \[expert, in, out\]"):
        surgeon.export_adapter(moved(base, f"experts.{what}", tmp_path), tmp_path / "adapter", base=base, error=1e-6)


def test_experts_stored_one_by_one_are_modules_of_their_own(tmp_path):
    base = toy(tmp_path / "base", "qwen3_moe")
    rows = direction(torch.randn(1, 32, generator=torch.Generator().manual_seed(4)), at="block.1")
    model = surgeon.edit("ablate", surgeon.open(base), directions=rows, writers="mlp")
    report = surgeon.export_adapter(model, tmp_path / "adapter")
    assert report.error == 0 and set(report.tensors) == {
        f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight" for layer in range(2) for expert in range(4)
    }
    keys = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert "base_model.model.model.layers.0.mlp.experts.3.down_proj.lora_B.weight" in keys
