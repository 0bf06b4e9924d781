"""`list_recipes` and `copy_recipe`."""

import pytest
from ruamel.yaml import YAML

import surgeon
from surgeon.verbs import recipes


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of recipes: one names an adapter beside it."""
    folder = tmp_path / "shelf"
    (folder / "adapters" / "style").mkdir(parents=True)
    (folder / "adapters" / "style" / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "adapters" / "other").mkdir()
    text = "# yaml-language-server: $schema=./recipe.schema.json\n# Two become one.\n"
    text += "models: {a: org/a, s: ./adapters/style, n: ./none}\n"
    (folder / "both.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(recipes, "recipes_folder", lambda: folder)
    return folder


def test_a_recipe_is_listed_with_its_first_comment(shelf):
    assert surgeon.list_recipes().explain() == "both  Two become one."
    assert surgeon.list_recipes().to_dict()["both"]["title"] == "Two become one."


def test_a_copy_brings_what_the_recipe_names_and_no_more(shelf, tmp_path):
    mine = tmp_path / "mine"
    assert surgeon.copy_recipe("both", mine) == [mine / "both.yaml", mine / "adapters/style/adapter_config.json"]
    assert sorted(path.name for path in mine.rglob("*")) == ["adapter_config.json", "adapters", "both.yaml", "style"]


def test_nothing_is_overwritten(shelf, tmp_path):
    surgeon.copy_recipe("both", tmp_path / "mine")
    (tmp_path / "mine" / "both.yaml").unlink()
    (tmp_path / "mine" / "adapters" / "style" / "adapter_config.json").write_text("mine", encoding="utf-8")
    with pytest.raises(surgeon.OutputError, match="adapter_config"):
        surgeon.copy_recipe("both", tmp_path / "mine")
    assert not (tmp_path / "mine" / "both.yaml").exists()


def test_two_recipes_may_share_a_folder_and_what_they_name(shelf, tmp_path):
    (shelf / "again.yaml").write_text("models: {s: ./adapters/style}", encoding="utf-8")
    (shelf / "recipe.schema.json").write_text("{}", encoding="utf-8")
    mine = tmp_path / "mine"
    assert mine / "recipe.schema.json" in surgeon.copy_recipe("both", mine)
    assert surgeon.copy_recipe("again", mine) == [mine / "again.yaml"]


def test_an_unknown_name_gets_the_nearest(shelf, tmp_path):
    with pytest.raises(surgeon.RefusedError) as error:
        surgeon.copy_recipe("bot", tmp_path)
    assert "both" in error.value.hint


def test_every_recipe_shipped_says_what_it_is_and_has_what_it_names(tmp_path):
    paths = surgeon.list_recipes().paths
    for name, path in paths.items():
        assert surgeon.list_recipes().to_dict()[name]["title"]
        assert YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        surgeon.copy_recipe(name, tmp_path / name)
