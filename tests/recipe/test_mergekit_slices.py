"""mergekit's slices, modules and documents: which native steps they mean."""

from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.recipe.mergekit_filters import targets
from surgeon.space.expr import Member, Merge, Model, Part, Reshape, settings
from surgeon.space.schedule import Layers, Rule, Rules
from surgeon.space.select import matches

A, B, C = Model("o/a"), Model("o/b"), Model("o/c")


def cut(model, first, end):
    return Reshape("stack", (Part(model, (first, end)),))


def linear(*members):
    one = [Member(of, settings({"weight": weight})) for of, weight in members]
    return Merge("linear", tuple(one), None, (), "mergekit")


def test_a_slice_of_several_sources_is_a_merge_of_cuts_and_slices_are_stacked(read):
    recipe = read("""
merge_method: linear
parameters: {weight: 0.5}
slices:
- sources:
  - {model: o/a, layer_range: [0, 2]}
  - {model: o/b, layer_range: [1, 3], parameters: {weight: 0.1}}
- sources:
  - {model: o/c, layer_range: [2, 4]}
  parameters: {weight: [0.2, 0.3]}
""").recipe
    first = linear((cut(A, 0, 2), Fraction(1, 2)), (cut(B, 1, 3), Fraction(1, 10)))
    second = linear((cut(C, 2, 4), Layers((Fraction(1, 5), Fraction(3, 10)))))
    assert recipe.expr == Reshape("stack", (Part(first), Part(second)))


def test_layers_that_are_only_copied_are_stacked_as_they_are(read):
    recipe = read("""
merge_method: passthrough
slices:
- sources: [{model: o/a, layer_range: [0, 16]}]
- sources: [{model: o/b, layer_range: [8, 24]}]
dtype: bfloat16
""").recipe
    assert recipe.expr == Reshape("stack", (Part(A, (0, 16)), Part(B, (8, 24))))
    assert recipe.output.dtype == "BF16"


def test_one_slice_is_the_merge_itself(read):
    recipe = read("""
merge_method: slerp
base_model: o/b
slices:
- sources: [{model: o/a, layer_range: [0, 4]}, {model: o/b, layer_range: [4, 8]}]
parameters: {t: 0.5}
""").recipe
    merged = Merge("slerp", (Member(cut(A, 0, 4)),), cut(B, 4, 8), settings({"t": Fraction(1, 2)}), "mergekit")
    assert recipe.expr == merged


def test_filters_of_models_see_their_own_layers_and_those_of_the_step_the_results(read):
    text = """
merge_method: slerp
slices:
- sources: [{model: o/a, layer_range: [0, 1]}, {model: o/b, layer_range: [0, 1]}]
  base_model: o/a
- sources: [{model: o/a, layer_range: [4, 6]}, {model: o/b, layer_range: [7, 9]}]
  base_model: o/b
parameters:
  t: [{filter: layers.2., value: 0.3}, {filter: layers.5., value: 1}, {filter: mlp, value: 0.7}, {value: 0.5}]
"""
    first, second = (part.of for part in read(text).recipe.expr.parts)
    tail = (Rule("*mlp*", Fraction(7, 10)), Rule(None, Fraction(1, 2)))
    assert dict(first.settings)["t"] == Rules(tail)
    assert dict(second.settings)["t"] == Rules((Rule(r"re:layers\.(1)\.", Fraction(3, 10)), *tail))
    assert (first.base_model, second.base_model) == (cut(A, 0, 1), cut(B, 7, 9))
    own = text.replace("slerp", "linear").replace("t: [", "weight: [")
    models = read(own).recipe.expr.parts[1].of.members
    weights = [dict(member.settings)["weight"] for member in models]
    assert weights == [Rules((Rule(r"re:layers\.(1)\.", Fraction(1)), *tail)), Rules(tail)]


@pytest.mark.parametrize(
    ("text", "layers", "fits", "others"),
    [
        ("mlp", range(4, 6), ["model.layers.0.mlp.x"], ["model.norm"]),
        ("layers.5.", range(4, 7), ["model.layers.1.mlp.x"], ["model.layers.5.mlp.x", "model.layers.0.mlp.x"]),
        ("layers.1", range(9, 12), ["model.layers.1.x", "model.layers.2.x"], ["model.layers.0.x"]),
        ("h.10.mlp", range(10, 11), ["transformer.h.0.mlp.x"], ["transformer.h.0.attn.x"]),
        ("experts.3.", range(4, 6), ["model.layers.0.mlp.experts.3.w1"], ["model.layers.3.mlp.experts.0.w1"]),
    ],
)
def test_filters(text, layers, fits, others):
    pattern = targets(text, layers)
    assert all(matches(pattern, name) for name in fits)
    assert not any(matches(pattern, name) for name in others)


def test_a_filter_for_layers_that_are_not_taken_fits_nothing():
    assert targets("layers.9.", range(4, 6)) is None
    assert targets("layers.9.", None) == "*layers.9.*"


def test_documents_name_each_other_in_any_order(read):
    recipe = read("""
merge_method: linear
models: [{model: one, parameters: {weight: 1}}, {model: o/c, parameters: {weight: 2}}]
dtype: float16
---
name: one
merge_method: linear
models: [{model: o/a, parameters: {weight: 3}}]
dtype: float32
""").recipe
    inner = linear((A, Fraction(3)))
    assert recipe.expr == linear((inner, Fraction(1)), (C, Fraction(2)))
    assert recipe.output.dtype == "F16"


def test_modules_are_merged_apart_and_joined(read):
    loaded = read("""
merge_method: linear
modules:
  vision_tower: {models: [{model: o/b}], parameters: {weight: 2}}
  text_decoder: {models: [{model: o/a}]}
parameters: {weight: 1}
""")
    text, rest, eyes = loaded.recipe.expr.parts
    assert (text.of, rest.of, eyes.of) == (linear((A, Fraction(1))), B, linear((B, Fraction(2))))
    assert matches(eyes.targets, "model.visual.blocks.0.attn.qkv.weight")
    assert not matches(eyes.targets, "visual.merger.mlp.0.weight")
    assert not matches(rest.targets, "language_model.model.layers.0.mlp.up_proj.weight")
    assert any("kept as they are in m0" in note for note in loaded.notes)


def test_one_module_called_default_is_the_model(read):
    text = "merge_method: linear\nmodules: {default: {models: [{model: o/a}], parameters: {weight: 2}}}\n"
    assert read(text).recipe.expr == linear((A, Fraction(2)))


def test_raw_files_are_models_and_pickles_are_refused_with_what_converts_them(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    torch.save({"w": torch.ones(2)}, "b.pt")
    for name, value in (("a", 1.0), ("b", 3.0)):
        save_file({"w": torch.full((2,), value)}, f"{name}.safetensors")
    recipe = tmp_path / "raw.yml"
    models = "[{model: a.safetensors}, {model: b.safetensors}]"
    text = f"merge_method: linear\nmodels: {models}\nparameters: {{weight: 1}}\n"
    recipe.write_text(text)
    surgeon.apply(recipe, tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    assert load_file(file)["w"].tolist() == [2.0, 2.0]
    recipe.write_text(text.replace("b.safetensors", "b.pt"))
    with pytest.raises(surgeon.CheckpointError, match=r"b\.pt") as refused:
        surgeon.plan(recipe)
    assert "save_file" in (refused.value.hint or "")
