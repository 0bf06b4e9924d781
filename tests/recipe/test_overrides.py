"""`--set K=V`."""

from fractions import Fraction

import pytest

from surgeon.errors import Origin, RecipeError
from surgeon.space.expr import Model, walk


def models(loaded):
    return {node.name: node for node in walk(loaded.recipe.expr) if isinstance(node, Model)}


def merge(loaded):
    return next(node for node in walk(loaded.recipe.expr) if getattr(node, "name", "") == "merged")


def member(loaded, index):
    return dict(merge(loaded).members[index].settings)


def test_a_model_becomes_a_folder_here_or_a_hub_id(read, valid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    found = models(read(valid, set={"models.base": "./mine", "models.math": "org", "models.code": "org/code"}))
    assert (found["base"].ref, found["base"].probe) == (str(tmp_path / "mine"), True)
    assert (found["math"].ref, found["math"].probe) == (str(tmp_path / "org"), True)
    assert (found["code"].ref, found["code"].probe) == ("org/code", True)
    assert found["base"].origin == Origin("--set models.base=./mine", 1)
    assert found["style"].ref == "/home/recipes/adapters/style"


def test_an_adapter_keeps_its_base(read, valid):
    found = models(read(valid, set={"models.style": "org/other"}))["style"]
    assert (found.ref, found.base_model) == ("org/other", Model("org/base"))


def test_values_are_yaml(read, valid):
    loaded = read(
        valid,
        set={
            "steps.merged.models.math.weight": "0.7",
            "steps.merged.models.code.density": "[1, 0.5]",
            "steps.merged.normalize": "false",
            "output.dtype": "float16",
            "steps.final.combine": "merged + style + 0*math",
            "steps.final.schedules": "{}",
        },
    )
    assert member(loaded, 0)["weight"] == Fraction(7, 10)
    assert member(loaded, 1)["density"].values == (1, Fraction(1, 2))
    assert dict(merge(loaded).settings)["normalize"] is False
    assert loaded.recipe.output.dtype == "F16"
    assert len(loaded.recipe.expr.terms) == 2


def test_a_list_of_names_takes_settings_too(read):
    text = "surgeon: 1\nmodels: {a: o/a, b: o/b}\nsteps: {r: {merge: linear, models: [a, b], weight: 1}}"
    merged = read(text, set={"steps.r.models.b.weight": "3", "output.shard_size": "1GB"}).recipe
    assert [dict(m.settings) for m in merged.expr.members] == [{}, {"weight": 3}]
    assert merged.output.shard_size == 10**9


def test_a_list_item_goes_by_its_number(read, valid):
    loaded = read(valid, set={"steps.merged.lambda.1.value": "0.3"})
    assert dict(merge(loaded).settings)["lambda"].rules[1].value == Fraction(3, 10)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("models.bsae", "./x", "there is no 'bsae' in models | did you mean 'base'?"),
        ("step.merged.lambda", "1", "there is no 'step' in the recipe | did you mean 'steps'?"),
        ("steps.mergd.lambda", "1", "there is no 'mergd' in steps | did you mean 'merged'?"),
        ("steps.merged.models.maths.weight", "1", "there is no 'maths' in steps.merged.models | did you mean 'math'?"),
        ("steps.merged.lamda", "1", "unknown key 'lamda' in steps.merged | did you mean 'lambda'?"),
        ("steps.merged.lambda.7.value", "1", "there is no '7' in steps.merged.lambda | known: 0, 1"),
        ("output.dtype.x", "1", "there is no 'x' in output.dtype"),
        ("output.dtyp", "float16", "unknown key 'dtyp' in output | did you mean 'dtype'?"),
        ("output.dtype", "f16", "did you mean"),
        ("steps.merged.density", "[", "not YAML"),
        ("steps.merged.density", "!!int 3", "tags"),
        ("steps.merged.density", "2", "must lie in (0, 1]"),
        ("models.base", "no such folder", "there is no 'no such folder' here"),
        ("steps.final.combine", "merged + stlye", "did you mean 'style'"),
        ("", "1", "unknown key '' in the recipe"),
        ("steps..", "1", "there is no '' in steps"),
    ],
)
def test_faults_name_the_option(read, valid, key, value, message):
    with pytest.raises(RecipeError) as refused:
        read(valid, set={key: value})
    texts = {f"{f.message} | {f.hint}" for f in refused.value.faults if str(f.origin.file) == f"--set {key}={value}"}
    assert any(message in text for text in texts), refused.value.faults


def test_mergekit_recipes_too(read):
    models = "".join(f"- {{model: {ref}, parameters: {{weight: 1}}}}\n" for ref in ("o/a", "o/b"))
    text = f"merge_method: linear\nmodels:\n{models}"
    loaded = read(text, set={"models.1.model": "o/c", "models.0.parameters.weight": "0.5", "dtype": "float16"})
    assert [m.of.ref for m in loaded.recipe.expr.members] == ["o/a", "o/c"]
    assert dict(loaded.recipe.expr.members[0].settings) == {"weight": Fraction(1, 2)}
    assert loaded.recipe.output.dtype == "F16"
