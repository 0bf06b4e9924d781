"""Correct results of other tools pass, whichever dtype they computed in."""

from pathlib import Path

import pytest
import torch
from measuring_toys import Toy, adapt, llama, peft_merges, spoil

import surgeon

MERGEKIT = Path(__file__).parent / "data" / "mergekit"
RECIPES = sorted(path.stem for path in MERGEKIT.glob("*.yml"))


def test_pefts_merge_is_proven(toy):
    verdict = surgeon.verify(toy.merged, recipe=toy.expr)
    assert verdict.exit_code == 0, verdict.explain()
    assert verdict.checked["untouched"] == 21
    assert verdict.explain().endswith("untouched ones equal to their source.")


def test_own_output_is_bit_for_bit(toy, tmp_path):
    surgeon.apply(toy.expr, tmp_path / "out")
    verdict = surgeon.verify(tmp_path / "out", recipe=toy.expr)
    assert verdict.exit_code == 0
    assert verdict.checked == {"tensors": 30, "exact": 9, "untouched": 21}


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("work", [torch.float32, torch.bfloat16, torch.float16])
def test_peft_in_another_dtype(tmp_path, base_dtype, work):
    """Adapter stored in bf16 and not upcast: its product is rounded before it is added."""
    llama().to(base_dtype).save_pretrained(tmp_path / "base")
    adapt(llama(), tmp_path / "style", alpha=6, dtype=torch.bfloat16)
    peft_merges(tmp_path / "base", tmp_path / "style", tmp_path / "merged", work, cast=False)
    verdict = surgeon.verify(
        tmp_path / "merged", recipe=surgeon.open(tmp_path / "base") + 1 * surgeon.open(tmp_path / "style")
    )
    assert verdict.exit_code == 0, verdict.explain()


def test_two_adapters_merged_in_bf16_one_after_the_other(toy16, tmp_path):
    adapt(llama(), tmp_path / "other", alpha=2, size=0.05)
    peft_merges(toy16.merged, tmp_path / "other", tmp_path / "both", torch.bfloat16)
    verdict = surgeon.verify(tmp_path / "both", recipe=toy16.expr + surgeon.open(tmp_path / "other"))
    assert verdict.exit_code == 0, verdict.explain()


@pytest.mark.parametrize("name", RECIPES)
def test_mergekits_merge_is_proven(name, monkeypatch):
    monkeypatch.chdir(MERGEKIT)
    verdict = surgeon.verify(f"{name}.safetensors", recipe=f"{name}.yml")
    assert verdict.exit_code == 0, verdict.explain()


@pytest.mark.parametrize(
    ("name", "right", "off"),
    [
        ("task_arithmetic", "weight: 0.6", "weight: 0.606"),
        ("linear", "weight: 0.3", "weight: 0.306"),
        ("slerp", "t: 0.35", "t: 0.3535"),
        ("ties", "dtype:", "parameters: {lambda: 1.01}\ndtype:"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_but_not_at_another_strength(name, right, off, dtype, monkeypatch, tmp_path):
    monkeypatch.chdir(MERGEKIT)
    text = Path(f"{name}-{dtype}.yml").read_text()
    assert right in text
    (tmp_path / "off.yml").write_text(text.replace(right, off))
    verdict = surgeon.verify(f"{name}-{dtype}.safetensors", recipe=tmp_path / "off.yml")
    assert verdict.exit_code == 3, verdict.explain()


def test_a_tied_head_may_be_stored_or_left_out(tmp_path):
    llama(tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    adapt(llama(tie_word_embeddings=True), tmp_path / "style")
    peft_merges(tmp_path / "base", tmp_path / "style", tmp_path / "merged", torch.float32)
    expr = surgeon.open(tmp_path / "base") + surgeon.open(tmp_path / "style")

    def store(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    stored = spoil(tmp_path / "merged", tmp_path / "stored", store)
    assert "lm_head.weight" not in Toy.tensors(tmp_path / "merged")
    assert surgeon.verify(tmp_path / "merged", recipe=expr).exit_code == 0
    verdict = surgeon.verify(stored, recipe=expr)
    assert verdict.exit_code == 0
    assert "stored although tied" in verdict.explain()

    def untie(tensors):
        store(tensors)
        tensors["lm_head.weight"][0, 0] += 1

    verdict = surgeon.verify(spoil(tmp_path / "merged", tmp_path / "untied", untie), recipe=expr)
    assert verdict.exit_code == 3


def test_another_shard_layout_is_the_same_model(toy, tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(toy.merged, dtype="auto").save_pretrained(tmp_path, max_shard_size="60kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    verdict = surgeon.verify(tmp_path, recipe=toy.expr)
    assert verdict.exit_code == 0, verdict.explain()
