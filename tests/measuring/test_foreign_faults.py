"""Planted faults are found and named, in float32 and bfloat16."""

import json

import pytest
import torch
from measuring_toys import Toy, adapt, edit_json, llama, peft_merges, spoil
from safetensors.torch import load_file

import surgeon


def updates(toy):
    """tensor → α/r · B A, as the adapter on disk has it (α/r = 2)."""
    found = load_file(toy.adapter / "adapter_model.safetensors")
    names = [key.removesuffix(".lora_A.weight") for key in found if key.endswith("lora_A.weight")]
    prefix = "base_model.model."
    return {
        f"{name.removeprefix(prefix)}.weight": 2 * found[f"{name}.lora_B.weight"] @ found[f"{name}.lora_A.weight"]
        for name in names
    }


def merged_by(toy, tmp_path, rule):
    """A hand-written merge: each changed tensor is base + rule(name, update), rounded to the dtype once."""

    def change(tensors):
        base = toy.tensors(toy.base)
        for name, update in updates(toy).items():
            tensors[name] = (base[name].float() + rule(name, update)).to(toy.dtype)

    return spoil(toy.merged, tmp_path / "spoilt", change)


def verdict_of(toy, folder, code=3):
    verdict = surgeon.verify(folder, recipe=toy.expr)
    assert verdict.exit_code == code, verdict.explain()
    return verdict


def subjects(verdict):
    return {finding.subject for finding in verdict.findings if finding.kind == "mismatch"}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda name, update: 0 * update, "not applied: equals what the recipe starts from"),
        (lambda name, update: update / 2, "style: the scale α/r = 2 is missing"),
        (lambda name, update: -update, "style: the sign is flipped"),
        (lambda name, update: 2 * update, "applied twice"),
        (lambda name, update: 0.5 * update / 2, "the strength is off by -75.0%"),
        (lambda name, update: 1.01 * update, "style: the strength is off by +1.0%"),
        (lambda name, update: 0.99 * update, "style: the strength is off by -1.0%"),
    ],
)
def test_a_wrong_factor_is_named(toy, tmp_path, rule, words):
    verdict = verdict_of(toy, merged_by(toy, tmp_path, rule))
    assert words in verdict.explain()
    assert subjects(verdict) == set(updates(toy))


def test_the_hand_written_merge_itself_is_right(toy, tmp_path):
    verdict_of(toy, merged_by(toy, tmp_path, lambda name, update: update), code=0)


def test_one_tensor_at_another_strength_among_right_ones(toy, tmp_path):
    one = "model.layers.2.self_attn.o_proj.weight"
    verdict = verdict_of(toy, merged_by(toy, tmp_path, lambda name, u: u * (1.01 if name == one else 1)))
    assert subjects(verdict) == {one}
    assert "the strength is off by +1.0%" in verdict.explain()


def test_a_skipped_layer(toy, tmp_path):
    verdict = verdict_of(toy, merged_by(toy, tmp_path, lambda name, update: update * (".layers.1." not in name)))
    assert subjects(verdict) == {name for name in updates(toy) if ".layers.1." in name}
    assert "skipped in layer(s) 1" in verdict.explain()


def test_a_transposed_update(toy, tmp_path):
    square = {name for name, update in updates(toy).items() if len(set(update.shape)) == 1}
    verdict = verdict_of(toy, merged_by(toy, tmp_path, lambda n, u: u.T if n in square else u))
    assert subjects(verdict) == square
    assert "style: the update is transposed" in verdict.explain()


def test_one_ulp_in_one_entry_outside_the_recipe(toy, tmp_path):
    def change(tensors):
        bits = tensors["model.layers.1.mlp.up_proj.weight"].view(
            torch.int16 if toy.dtype == torch.bfloat16 else torch.int32
        )
        bits[3, 5] += 1

    verdict = verdict_of(toy, spoil(toy.merged, tmp_path / "spoilt", change))
    assert subjects(verdict) == {"model.layers.1.mlp.up_proj.weight"}
    assert "1 entries, by 1 ulp at most" in verdict.explain()


def test_integers_are_compared_by_their_bytes(tmp_path):
    from safetensors.torch import save_file

    def write(name, ids, weight):
        (tmp_path / name).mkdir()
        save_file({"ids": ids, "weight": weight}, tmp_path / name / "model.safetensors", {"format": "pt"})
        return tmp_path / name

    ids, weight = torch.arange(6), torch.randn(40)
    a, b = (surgeon.open(write(name, ids, weight * factor)) for name, factor in (("a", 1), ("b", 3)))
    right, wrong = write("right", ids, weight * 2), write("wrong", ids.flip(0), weight * 2)
    assert surgeon.verify(right / "model.safetensors", recipe=0.5 * a + 0.5 * b).exit_code == 0
    found = surgeon.verify(wrong / "model.safetensors", recipe=0.5 * a + 0.5 * b)
    assert found.exit_code == 3
    assert subjects(found) == {"ids"}


def test_one_entry_of_a_changed_tensor(toy, tmp_path):
    """By a hundredth of its value: far below what a norm over the tensor would show."""

    def change(tensors):
        tensors["model.layers.0.self_attn.q_proj.weight"][7, 7] *= 1.02

    verdict = verdict_of(toy, spoil(toy.merged, tmp_path / "spoilt", change))
    assert subjects(verdict) == {"model.layers.0.self_attn.q_proj.weight"}
    assert "1 of 4096 entries" in verdict.explain()


def test_nan(toy, tmp_path):
    def change(tensors):
        tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("nan")
        tensors["model.norm.weight"][0] = float("nan")

    verdict = verdict_of(toy, spoil(toy.merged, tmp_path / "spoilt", change))
    assert subjects(verdict) == {"model.layers.0.self_attn.q_proj.weight", "model.norm.weight"}
    assert verdict.explain().count("NaN") == 1


def test_another_models_values(toy, tmp_path):
    llama(seed=5).to(toy.dtype).save_pretrained(tmp_path / "math")
    base, math = surgeon.open(toy.base), surgeon.open(tmp_path / "math")
    name = "model.layers.0.mlp.up_proj.weight"
    surgeon.apply(base + 0.5 * (math - base), tmp_path / "out")

    def change(tensors):
        tensors[name] = toy.tensors(tmp_path / "math")[name]

    verdict = surgeon.verify(spoil(tmp_path / "out", tmp_path / "spoilt", change), recipe=base + 0.5 * (math - base))
    assert subjects(verdict) == {name}
    assert "math: the coefficient 0.5 is missing" in verdict.explain()


def test_a_coefficient_left_out(toy, tmp_path):
    llama(seed=5).to(toy.dtype).save_pretrained(tmp_path / "math")
    base, math = surgeon.open(toy.base), surgeon.open(tmp_path / "math")
    surgeon.apply(base + (math - base) + surgeon.open(toy.adapter), tmp_path / "out")
    verdict = surgeon.verify(tmp_path / "out", recipe=base + 0.3 * (math - base) + surgeon.open(toy.adapter))
    assert verdict.exit_code == 3
    assert "math: the coefficient 0.3 is missing" in verdict.explain()


def test_missing_and_added_tensors_and_shapes(toy, tmp_path):
    def change(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.mlp.down_proj.bias"] = torch.zeros(64)
        tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].T

    verdict = verdict_of(toy, spoil(toy.merged, tmp_path / "spoilt", change))
    assert subjects(verdict) == {
        "model.norm.weight", "model.layers.0.mlp.down_proj.bias", "model.layers.0.mlp.up_proj.weight",
    }  # fmt: skip
    assert "transposed?" in verdict.explain()


def test_a_truncated_file(toy, tmp_path):
    copy = spoil(toy.merged, tmp_path / "spoilt", lambda tensors: None)
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[:-100])
    assert "truncated" in verdict_of(toy, copy).explain()


def test_a_change_too_small_to_be_seen_cannot_be_told(toy16):
    """In bfloat16 a trace of the adapter flips no bit: applied and not applied are the same file."""
    faint = surgeon.open(toy16.base) + 1e-12 * surgeon.open(toy16.adapter)
    verdict = surgeon.verify(toy16.base, recipe=faint)
    assert verdict.exit_code == 4
    assert "9 of 9 changed tensors" in verdict.explain()
    assert verdict.explain().splitlines()[-1].startswith("Cannot tell:")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"num_attention_heads": 8}, "num_attention_heads"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"eos_token_id": 7}, "eos_token_id"),
        ({"rope_theta": 5000.0}, "rope_theta"),
        ({"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}}, "rope_theta"),
        ({"torch_dtype": "float16", "dtype": "float16"}, "dtype"),
    ],
)
def test_a_config_changed_in_substance(toy32, tmp_path, changes, words):
    copy = spoil(toy32.merged, tmp_path / "spoilt", lambda tensors: None)
    edit_json(copy / "config.json", **changes)
    verdict = verdict_of(toy32, copy)
    assert subjects(verdict) == {"config.json"}
    assert words in verdict.explain()


def test_a_config_written_in_another_way(toy32, tmp_path):
    copy = spoil(toy32.merged, tmp_path / "spoilt", lambda tensors: None)
    config = json.loads((copy / "config.json").read_text())
    config |= {"_name_or_path": "somewhere", "transformers_version": "4.40.0", "use_cache": False}
    config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"], "torch_dtype": config.pop("dtype")}
    (copy / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    verdict = verdict_of(toy32, copy, code=0)
    assert "to the same effect" in verdict.explain()


def test_one_tensor_at_another_strength_where_16_bit_work_is_plausible(toy16, tmp_path):
    """With the adapter in bfloat16 too, a percent lies inside every bound of an entry: only the fit shows it."""
    toy, one = Toy.__new__(Toy), "model.layers.2.self_attn.o_proj.weight"
    toy.base, toy.adapter, toy.merged, toy.dtype = toy16.base, tmp_path / "style", tmp_path / "merged", torch.bfloat16
    adapt(llama(), toy.adapter, dtype=torch.bfloat16)
    peft_merges(toy.base, toy.adapter, toy.merged, torch.bfloat16)

    def change(tensors):
        found = load_file(toy.adapter / "adapter_model.safetensors")
        b, a = (found[f"base_model.model.{one[:-7]}.lora_{part}.weight"].float() for part in "BA")
        tensors[one] = (toy.tensors(toy.base)[one].float() + 1.01 * 2 * b @ a).bfloat16()

    verdict = verdict_of(toy, spoil(toy.merged, tmp_path / "spoilt", change))
    assert subjects(verdict) == {one}
    assert "style: the strength is off by +1.0%" in verdict.explain()


def test_weights_beside_those_judged_are_told(toy, tmp_path):
    folder = merged_by(toy, tmp_path, lambda name, update: update)
    (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    verdict = verdict_of(toy, folder, code=0)
    assert "some loader may take it for them: consolidated.safetensors" in verdict.explain()
