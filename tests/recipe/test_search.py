"""Open numbers: found wherever a number stands, filled in as `--set` does, refused where they make no sense."""

from pathlib import Path

import pytest

import surgeon
from surgeon.recipe import dump_recipe, load, searched

TEXT = """surgeon: 1
models: {a: ./a, b: ./b, c: ./c}
steps:
  merged:
    merge: ties
    base_model: a
    models:
      b: {weight: {search: [0.2, 1.5]}, density: [{search: [0.1, 1]}, 0.5]}
      c: {weight: [{targets: "*mlp*", value: {search: [0, 2]}}, {value: 1}]}
    elect: {search: [trimmed, weighted], choices: true}
  final:
    combine: a + s*(merged - a)
    schedules: {s: {search: [0.5, 1]}}
tune:
  prompts: {b: ./b.jsonl}
  budget: 0.1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(TEXT)
    return tmp_path / "r.yaml"


def test_all_are_found_and_filled_in(recipe, tmp_path):
    found = searched(recipe)
    assert [(one.path, one.values, one.choices) for one in found] == [
        ("steps.merged.models.b.weight", (0.2, 1.5), False),
        ("steps.merged.models.b.density.0", (0.1, 1), False),
        ("steps.merged.models.c.weight.0.value", (0, 2), False),
        ("steps.merged.elect", ("trimmed", "weighted"), True),
        ("steps.final.schedules.s", (0.5, 1), False),
    ]
    loaded = load(recipe, {one.path: one.spelled(one.values[-1]) for one in found})
    plain = TEXT
    for one, number in zip(
        ("[0.2, 1.5]}", "[0.1, 1]}", "[0, 2]}", "[trimmed, weighted], choices: true}", "[0.5, 1]}"),
        ("1.5", "1", "2", "weighted", "[1]"),
        strict=True,
    ):
        plain = plain.replace(f"{{search: {one}", number)
    (tmp_path / "plain.yaml").write_text(plain)
    assert loaded.recipe == surgeon.load_recipe(tmp_path / "plain.yaml")
    assert "search" not in dump_recipe(loaded.recipe)
    assert loaded.tune == {"prompts": {"b": str(tmp_path / "b.jsonl")}, "budget": 0.1}
    assert any("surgeon tune" in note for note in loaded.notes)


def test_what_is_set_is_no_longer_open(recipe):
    assert len(searched(recipe, {"steps.merged.models.b.weight": "0.3"})) == 4


def test_a_recipe_with_open_numbers_is_not_built(recipe):
    with pytest.raises(
        surgeon.RecipeError, match=r"r.yaml:8: weight is to be searched\s+next: run `surgeon tune RECIPE`"
    ):
        surgeon.plan(recipe)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("{search: [1.5, 0.2]}", "two numbers, the lower first"),
        ("{search: [1]}", "two numbers"),
        ("{search: 3}", "two numbers"),
        ("{search: [a, b]}", "two numbers"),
        ("{search: [1], choices: true}", "choices are two or more"),
        ("{search: [0, 1], choices: maybe}", "true or false"),
        ("{search: [0, 1], log: true}", "unknown key 'log'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_its_place(recipe, wrong, said):
    recipe.write_text(TEXT.replace("{search: [0.2, 1.5]}", wrong))
    with pytest.raises(surgeon.RecipeError, match=f"r.yaml:8: .*{said}"):
        searched(recipe)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("budget: -1", "from 0 on"),
        ("batch: 0", "greater than or equal to 1"),
        ("per: rows", "'row'"),
        ("promts: {}", "did you mean 'prompts'"),
    ],
)
def test_the_section_is_strict(recipe, wrong, said):
    recipe.write_text(TEXT.replace("budget: 0.1", wrong))
    with pytest.raises(surgeon.RecipeError, match=rf"(?s)r.yaml:16: .*{said}"):
        load(recipe, {one.path: one.spelled(one.values[0]) for one in searched(recipe)})
