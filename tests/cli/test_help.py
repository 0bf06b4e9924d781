"""Every verb explains itself, with examples."""

import json

import pytest
from typer.testing import CliRunner

import surgeon
from surgeon_cli.main import app

VERBS = ["apply", "plan", "verify", "find", "measure", "diff", "show", "import", "methods", "recipes", "schema"]
VERBS += ["check", "convert", "doctor", "export", "patch", "publish", "push-weights", "reproduce", "sign", "tune"]


def ask(*arguments):
    return CliRunner().invoke(app, list(arguments), prog_name="surgeon")


def test_help_lists_every_verb_in_whole_sentences():
    text = ask("--help").output
    listed = {line.split()[0]: line for line in text.partition("Commands:")[2].splitlines() if line.strip()}
    assert list(listed) and set(listed) == set(VERBS)
    assert not [line for line in listed.values() if "..." in line]


@pytest.mark.parametrize("verb", [*VERBS, "measure residual", "export gguf", "export control-vector", "patch revert"])
def test_every_verb_shows_an_example(verb):
    result = ask(*verb.split(), "--help")
    assert result.exit_code == 0
    assert f"surgeon {verb}" in result.output.partition("Example")[2]


def test_the_version():
    assert ask("--version").output == f"surgeon {surgeon.__version__}\n"


def test_a_wrong_option_is_refused():
    result = ask("apply", "recipe.yaml", "-o", "out", "--dtyp", "float16")
    assert result.exit_code == 2
    assert "--dtype" in result.output


def test_overrides_must_be_pairs():
    result = ask("plan", "recipe.yaml", "--set", "output.dtype")
    assert result.exit_code == 2
    assert "KEY=VALUE" in result.output


def test_schema_is_json_on_stdout():
    assert json.loads(ask("schema").output) == surgeon.schema()


def test_methods_as_json():
    listed = json.loads(ask("methods", "--json").output)
    assert {"linear", "task_arithmetic", "ties", "slerp"} <= listed["methods"].keys()
    assert listed["methods"]["ties"]["settings"]["density"]["per_model"] is True


@pytest.mark.parametrize(
    ("name", "told"),
    [("ties", "density"), ("ablate", "strength"), ("untie", "embedding"), ("mean_difference", "components")],
)
def test_one_in_full(name, told):
    result = ask("methods", name)
    assert result.exit_code == 0
    assert told in result.output


def test_recipes_are_listed_and_copied(tmp_path):
    listed = json.loads(ask("recipes", "--json").output)
    assert all(entry["title"] for entry in listed.values())
    name = next(iter(listed))
    result = ask("recipes", "copy", name, str(tmp_path / "mine"))
    assert result.exit_code == 0
    assert (tmp_path / "mine" / f"{name}.yaml").is_file()
