"""The plan: from headers alone, every tensor accounted for, every mismatch listed, memory promised or refused."""

import json
import os
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.engine.reading import Files
from surgeon.planning.plan import build
from surgeon.planning.step import Key
from surgeon.space.output import Output, Recipe
from surgeon.space.schedule import Layers, Rule, Rules
from surgeon.testing.toys import random_tensors, toy_llama, write_checkpoint


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("llamas")
    base = toy_llama(folder / "a")
    return {"a": base, "b": toy_llama(folder / "b", 1, base=base), "c": toy_llama(folder / "c", 2, base=base)}


@pytest.fixture
def abc(llamas: Mapping[str, Path]):
    return tuple(surgeon.open(llamas[name]) for name in "abc")


def headers(folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16", size: int = 2) -> Path:
    """A checkpoint whose data is a hole in a sparse file."""
    folder.mkdir(parents=True)
    entries, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + size * torch.Size(shape).numel()
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text("{}")
    return folder


def settings(plan, step: str, name: str) -> dict[str, object]:
    """A setting's value by tensor."""
    return {key.tensor: s.values[name] for key, s in plan.steps.items() if s.kernel == step}


# -- headers alone ----------------------------------------------------------------------------------------------------


def test_no_tensor_is_read(abc, llamas, monkeypatch: pytest.MonkeyPatch):
    a, b, c = abc

    def never(*arguments, **named):
        raise AssertionError("a tensor was read")

    for module, name in ((os, "pread"), (os, "preadv"), (os, "sendfile"), (os, "copy_file_range")):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr(Files, "fill", never)
    monkeypatch.setattr("safetensors.safe_open", never)
    monkeypatch.setattr("safetensors.torch.load_file", never)
    expr = 0.5 * surgeon.merge("ties", [b, c], base_model=a, density=0.5, over="model") + 0.5 * a
    plan = surgeon.plan(expr)
    assert "computed" in plan.explain()
    assert plan.to_dict()["bytes_read"] > 0


def test_sizes_that_no_disk_holds_can_be_planned(tmp_path: Path):
    """Only the headers are there: 20 000 tensors, 5 TB each."""
    shapes = {"model.embed_tokens.weight": (128_000, 4_096), "model.norm.weight": (16_384,), "lm_head.weight": (2, 2)}
    for layer in range(2222):
        for part in ("q", "k", "v", "o"):
            shapes[f"model.layers.{layer}.self_attn.{part}_proj.weight"] = (16_384, 8_192)
        for part in ("gate", "up", "down"):
            shapes[f"model.layers.{layer}.mlp.{part}_proj.weight"] = (16_384, 8_192)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (16_384,)
        shapes[f"model.layers.{layer}.post_attention_layernorm.weight"] = (16_384,)
    a, b, c = (surgeon.open(headers(tmp_path / name, shapes)) for name in "abc")
    plan = surgeon.plan(surgeon.merge("ties", [b, c], base_model=a, density=Layers((Fraction(1, 5), Fraction(4, 5)))))
    assert len(plan.targets) == len(shapes) == 3 + 9 * 2222
    assert plan.peak < 1_500_000_000
    assert {target.action for target in plan.targets} == {"compute"}


# -- every tensor accounted for ---------------------------------------------------------------------------------------


def test_every_input_tensor_is_a_target_or_dropped(abc, llamas):
    a, b, _ = abc
    plan = build(Recipe(a + 0.5 * (b - a), Output(drop=("*layernorm*",))))
    names = set(surgeon.plan(a).recipe.expr and {t.name for t in surgeon.plan(a).targets})
    assert {target.name for target in plan.targets} | set(plan.dropped) == names
    assert not {target.name for target in plan.targets} & set(plan.dropped)
    assert all("layernorm" in name for name in plan.dropped)
    assert {name for file in plan.layout.files for name in file.tensors} == {target.name for target in plan.targets}
    with pytest.raises(surgeon.RefusedError, match=r"'\*nothing\*' matches no tensor"):
        build(Recipe(a, Output(drop=("*nothing*",))))


def test_unknown_names_and_architectures_are_copied(tmp_path: Path):
    held = random_tensors({"anything.at.all": (3, 3), "x": (5,)}, 0) | {"counts": torch.arange(4)}
    a = surgeon.open(write_checkpoint(tmp_path / "a", held, config={"architectures": ["NobodyKnows"]}))
    plan = surgeon.plan(a)
    assert {target.action for target in plan.targets} == {"copy"}
    assert any("nothing changes" in warning for warning in plan.warnings)


def test_what_cancels_is_not_opened(abc, tmp_path: Path):
    a, b, _ = abc
    gone = surgeon.open(tmp_path / "not there")
    plan = surgeon.plan(a + 2 * (b - gone) - b - (b - 2 * gone) + 0.25 * (a - b))
    assert len(plan.sources) == 2


def test_integers_in_nested_steps_are_compared_in_all_inputs(tmp_path: Path):
    held = {"model.layers.0.w": torch.ones(4, 4), "positions": torch.arange(5)}
    a, b, c = (surgeon.open(write_checkpoint(tmp_path / name, held)) for name in "abc")
    nested = 0.5 * surgeon.merge("ties", [b], base_model=a) + 0.5 * surgeon.merge("slerp", [c], base_model=b, t=0.5)
    target = next(target for target in surgeon.plan(nested).targets if target.name == "positions")
    assert target.action == "copy"
    assert len({target.stored, *target.equals}) == 3
    surgeon.apply(nested, tmp_path / "out")
    write_checkpoint(tmp_path / "c", held | {"positions": torch.arange(5) + 1})
    with pytest.raises(surgeon.RunError, match=r"positions is I64, which is not combined, and differs between"):
        surgeon.apply(nested, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_side_files_come_from_the_base_or_the_first_model_named(abc):
    a, b, c = abc
    for expr, giver in (
        (surgeon.merge("ties", [b, c], base_model=a), a),
        (surgeon.merge("linear", [b, a], weight=1), b),
        (0.5 * c + 0.5 * a, c),
        (0 * a + 1 * b, b),
        (surgeon.merge("ties", [b], base_model=0.5 * c + 0.5 * a), c),
    ):
        assert surgeon.plan(expr).files_from.ref == giver.ref
    assert surgeon.plan(0.5 * c + 0.5 * a, files_from=b).files_from.ref == b.ref


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_all_mismatches_are_listed(tmp_path: Path):
    one = random_tensors({"a": (2, 3), "b": (4,), "c": (5,), "d": (2,)}, 0) | {"n": torch.arange(3)}
    two = random_tensors({"a": (3, 2), "b": (4,), "e": (6,), "d": (2,)}, 1) | {"n": torch.arange(3).int()}
    x, y = (surgeon.open(write_checkpoint(tmp_path / name, held)) for name, held in (("x", one), ("y", two)))
    ties, linear = surgeon.merge("ties", [y], base_model=x), surgeon.merge("linear", [x, y], weight=1)
    for expr in (0.5 * x + 0.5 * y, ties, linear):
        with pytest.raises(surgeon.MismatchError) as refusal:
            surgeon.plan(expr)
        told = str(refusal.value)
        assert "a: F32[2, 3] in x, F32[3, 2] in y" in told
        assert "c: only in x" in told
        assert "e: only in y" in told
        assert "n: I64[3] in x, I32[3] in y" in told
        assert not re.search(r"^ +[bd]:", told, re.MULTILINE)


def test_floats_of_any_width_fit(tmp_path: Path):
    held = random_tensors({"w": (4, 4)}, 0)
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    opened = [
        surgeon.open(write_checkpoint(tmp_path / str(kind), {name: value.to(kind) for name, value in held.items()}))
        for kind in kinds
    ]
    for first, stored in zip(opened, ("F16", "BF16", "F32", "F64"), strict=True):
        others = [model for model in opened if model is not first]
        plan = surgeon.plan(surgeon.merge("linear", [first, *others], weight=1))
        assert plan.targets[0].spec.dtype == stored
        assert surgeon.plan(first, dtype="bfloat16").targets[0].spec.dtype == "BF16"


@pytest.mark.parametrize(
    ("terms", "mass", "hint"),
    [
        (lambda a, b, c: a + 0.7 * b, "1.7", r"did you mean a \+ 0.7\*\(b - a\)\?"),
        (lambda a, b, c: 0.5 * a + 0.6 * b, "1.1", r"did you mean a \+ 0.6\*\(b - a\)\?"),
        (lambda a, b, c: a - b, "0", r"a task vector"),
        (lambda a, b, c: surgeon.merge("ties", [0.5 * b], base_model=c), "0.5", "a task vector 0"),
        (lambda a, b, c: surgeon.merge("ties", [b], base_model=c - a), "0", "not a model"),
    ],
)
def test_masses_that_are_no_models_are_refused_with_what_was_meant(abc, terms, mass, hint):
    with pytest.raises(surgeon.MismatchError, match=rf"sum to {mass};") as refusal:
        surgeon.plan(terms(*abc))
    assert re.search(hint, str(refusal.value))


def test_task_vectors_stand_in_merges(abc):
    a, b, c = abc
    assert surgeon.plan(surgeon.merge("ties", [b - a, c], base_model=a)).targets
    with pytest.raises(surgeon.MismatchError, match="everything cancels"):
        surgeon.plan((a - b) - (a - b))


def test_a_model_count_that_a_method_does_not_take_is_refused(abc):
    a, b, c = abc
    with pytest.raises(surgeon.RefusedError, match="slerp takes"):
        surgeon.plan(surgeon.merge("slerp", [b, c], base_model=a, t=0.5))
    with pytest.raises(surgeon.RefusedError, match="needs a base_model"):
        surgeon.plan(surgeon.merge("ties", [b, c]))
    with pytest.raises(surgeon.RefusedError, match="no base_model"):
        surgeon.plan(surgeon.merge("linear", [b, c], base_model=a, weight=1))


def test_quantised_models_are_refused_and_copied(tmp_path: Path):
    held = random_tensors({"w": (4, 4)}, 0)
    packed = {"quantization_config": {"quant_method": "gptq"}}
    a = surgeon.open(write_checkpoint(tmp_path / "a", held, config=packed))
    b = surgeon.open(write_checkpoint(tmp_path / "b", held))
    with pytest.raises(surgeon.MismatchError, match="is quantised"):
        surgeon.plan(0.5 * a + 0.5 * b)
    assert surgeon.plan(a).targets[0].action == "copy"


# -- schedules --------------------------------------------------------------------------------------------------------


def test_a_list_runs_over_the_layers_embeddings_first_head_last(abc):
    a, b, _ = abc
    expr = surgeon.merge("slerp", [b], base_model=a, t=Layers((Fraction(0), Fraction(1, 2), Fraction(1))))
    found = settings(surgeon.plan(expr), "merge:slerp", "t")
    assert found["model.embed_tokens.weight"] == found["model.layers.0.mlp.up_proj.weight"] == 0
    assert found["model.layers.1.mlp.up_proj.weight"] == 0.5
    assert found["model.layers.2.input_layernorm.weight"] == found["model.norm.weight"] == found["lm_head.weight"] == 1
    mergekit = surgeon.merge(
        "slerp", [b], base_model=a, t=Layers((Fraction(1, 4), Fraction(3, 4))), semantics="mergekit"
    )
    assert settings(surgeon.plan(mergekit), "merge:slerp", "t")["lm_head.weight"] == 0.25


def test_rules_and_lists_within_rules(abc):
    a, b, _ = abc
    rules = Rules((Rule("*mlp*", Layers((Fraction(0), Fraction(1)))), Rule(None, Fraction(1, 8))))
    plan = surgeon.plan(a + rules * (b - a))
    found = {key.tensor: step.values["coefficients"] for key, step in plan.steps.items() if step.kernel == "combine"}
    assert found["model.layers.1.mlp.up_proj.weight"] == (0.5,)
    assert found["lm_head.weight"] == (0.125,)
    copied = {target.name for target in plan.targets if target.action == "copy"}
    assert copied == {f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}


def test_a_list_on_an_unknown_layout_is_refused_by_name(tmp_path: Path):
    held = random_tensors({"blocks.of.ours.0.w": (3, 3)}, 0)
    a, b = (surgeon.open(write_checkpoint(tmp_path / name, held)) for name in "ab")
    schedule = Layers((Fraction(0), Fraction(1)))
    for expr in (a + schedule * (b - a), surgeon.merge("slerp", [b], base_model=a, t=schedule)):
        with pytest.raises(surgeon.MismatchError, match=r"what blocks.of.ours.0.w takes: its layer is not known"):
            surgeon.plan(expr)
    assert surgeon.plan(a + Layers((Fraction(1, 2),)) * (b - a)).targets


def test_a_pattern_that_fits_nothing_is_refused_and_so_are_rules_that_end_early(abc):
    a, b, _ = abc
    with pytest.raises(surgeon.RecipeError, match=r"'\*expert\*' fits no tensor"):
        surgeon.plan(a + Rules((Rule("*expert*", Fraction(1)), Rule(None, Fraction(0)))) * (b - a))
    with pytest.raises(surgeon.MismatchError, match="no rule of the schedule"):
        surgeon.plan(a + Rules((Rule("*mlp*", Fraction(1)),)) * (b - a))


def test_one_model_under_two_names_is_refused(abc):
    a, b, _ = abc
    same = type(b)(b.ref, name="same")
    with pytest.raises(surgeon.RefusedError, match=r"is there twice(.|\n)*next: list it once"):
        surgeon.plan(surgeon.merge("ties", [b, same], base_model=a))


def test_a_filter_of_mergekit_that_fits_nothing_is_a_warning(abc):
    """One recipe serves models with a head and models without, as it does in mergekit."""
    a, b, c = abc
    weight = Rules((Rule("*vision*", Fraction(1, 3)), Rule(None, Fraction(1, 2))))
    merged = surgeon.merge("ties", [b, c], base_model=a, weight=weight, semantics="mergekit")
    plan = surgeon.plan(merged)
    assert [told for told in plan.warnings if "'*vision*' fits no tensor" in told]
    plain = surgeon.plan(surgeon.merge("ties", [b, c], base_model=a, weight=0.5, semantics="mergekit"))
    weights = [
        {step.values["weight"] for step in one.steps.values() if "weight" in step.values} for one in (plan, plain)
    ]
    assert weights[0] == weights[1] == {(0.5, 0.5)}


def test_one_threshold_over_the_model_takes_one_density(abc):
    a, b, c = abc
    varying = Layers((Fraction(1, 5), Fraction(4, 5)))
    with pytest.raises(surgeon.MismatchError, match=r"over: model has one threshold(.|\n)*next: "):
        surgeon.plan(surgeon.merge("ties", [b, c], base_model=a, density=varying, over="model"))
    assert surgeon.plan(surgeon.merge("ties", [b, c], base_model=a, weight=varying, over="model")).targets


# -- memory -----------------------------------------------------------------------------------------------------------


def test_a_tensor_over_the_budget_is_refused_by_name_with_need_and_limit(tmp_path: Path):
    """DoRA needs the whole matrix; 12 000 × 12 000 in fp32 is 576 MB, several times over."""
    from safetensors.torch import save_file

    base = headers(tmp_path / "a", {"model.layers.0.mlp.up_proj.weight": (12_000, 12_000), "model.norm.weight": (9,)})
    lora = tmp_path / "lora"
    lora.mkdir()
    at = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    parts = {f"{at}A.weight": torch.zeros(2, 12_000), f"{at}B.weight": torch.zeros(12_000, 2)}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"], "use_dora": True}
    save_file(parts | {f"{at}magnitude_vector": torch.ones(12_000)}, lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps(config))
    expr = surgeon.open(base) + surgeon.open(lora)
    with pytest.raises(surgeon.BudgetError) as refusal:
        surgeon.plan(expr, memory="800MB")
    told = re.search(
        r"model.layers.0.mlp.up_proj.weight BF16\[12000, 12000\] \(DoRA.*\) needs (\S+) GB of memory, .*; 800.0 MB are",
        str(refusal.value),
    )
    assert told
    assert 1.7 < float(told[1]) < 6
    allowed = re.search(r"--memory (\d+)MB", refusal.value.hint)
    assert allowed
    assert surgeon.plan(expr, memory=f"{int(allowed[1]) + 50}MB").peak <= (int(allowed[1]) + 50) * 10**6


def test_the_peak_holds_for_the_workers_chosen(abc):
    a, b, c = abc
    expr = surgeon.merge("ties", [b, c], base_model=a, density=0.5)
    many = surgeon.plan(expr, threads=64, memory="700MB")
    assert many.workers < 64
    assert many.peak <= 700_000_000
    with pytest.raises(surgeon.BudgetError, match="needs"):
        surgeon.plan(expr, memory="10MB")


def test_a_plan_in_words_names_patterns_reasons_and_totals(abc):
    a, b, c = abc
    told = surgeon.plan(surgeon.merge("ties", [b, c], base_model=a, density=0.5)).explain()
    assert re.search(r"~ model.layers.\*.mlp.up_proj.weight +3 × F32\[48, 32\]  ties \(inputs held\)", told)
    assert "Plan: 30 tensors computed, 0 copied, 0 dropped" in told
    data = surgeon.plan(0.5 * a + 0.5 * b).to_dict()
    json.dumps(data)
    assert data["bytes_written"] < data["bytes_read"]


def test_steps_are_shared_not_repeated(abc):
    a, b, c = abc
    ties = surgeon.merge("ties", [b, c], base_model=a, density=0.5)
    plan = surgeon.plan(0.5 * ties + 0.5 * surgeon.merge("slerp", [ties], base_model=a, t=0.5))
    keys = [key for key, step in plan.steps.items() if step.kernel == "merge:ties"]
    assert len(keys) == len(plan.targets)
    assert all(isinstance(key, Key) for key in keys)
