"""Native recipes: what they mean, and every fault with its place."""

from fractions import Fraction

import pytest

from surgeon.errors import Origin, RecipeError
from surgeon.recipe import load, load_recipe
from surgeon.space.expr import Combination, Member, Merge, Model, settings, walk
from surgeon.space.output import Output
from surgeon.space.schedule import Layers, Rule, Rules

BASE, MATH = Model("org/base"), Model("someone/math@main")
CODE = Model("/home/recipes/checkpoints/code")
STYLE = Model("/home/recipes/adapters/style", BASE)


def test_the_whole_language_means_what_python_says(read, valid):
    members = (
        Member(MATH, settings({"weight": Fraction(3, 5), "density": Layers((Fraction(1, 5), Fraction(4, 5)))})),
        Member(CODE, settings({"weight": Fraction(2, 5)})),
    )
    shared = {
        "density": Fraction(1, 2),
        "lambda": Rules((Rule("*mlp*", Fraction(1, 2)), Rule(None, Fraction(1, 5)))),
    }
    merged = Merge("ties", members, BASE, settings(shared))
    schedule = Layers((Fraction(1, 5), Fraction(4, 5)))
    recipe = read(valid).recipe
    assert recipe.expr == merged + STYLE * schedule - (MATH - BASE) * Fraction(1, 10)
    assert recipe.output == Output("BF16", 5_000_000_000)


def test_every_node_knows_where_it_was_written(read, valid):
    recipe = read(valid).recipe
    places = {str(node): node.origin for node in walk(recipe.expr) if not isinstance(node, Combination)}
    assert places["math"] == Origin("r.yaml", 4, 3)
    assert places["merged"] == Origin("r.yaml", 8, 3)
    assert recipe.expr.origin == Origin("r.yaml", 17, 14)
    assert recipe.output.origin == Origin("r.yaml", 19, 1)


def test_numbers_are_the_decimals_typed(read):
    models = "{a: {weight: 1e-5}, b: {weight: .1}}"
    text = f"surgeon: 1\nmodels: {{a: o/a, b: o/b}}\nsteps: {{r: {{merge: linear, models: {models}}}}}"
    weights = [dict(member.settings)["weight"] for member in read(text).recipe.expr.members]
    assert weights == [Fraction(1, 100_000), Fraction(1, 10)]


def test_a_list_of_names_is_short_for_models_without_settings(read):
    text = "surgeon: 1\nmodels: {{a: o/a, b: o/b}}\nsteps: {{r: {{merge: slerp, base_model: a, models: {}, t: 0.5}}}}"
    short, long, null = (read(text.format(models)).recipe for models in ("[b]", "{b: {}}", "{b: }"))
    assert short == long == null


def test_defaults_are_not_stored(read):
    text = "surgeon: 1\nmodels: {a: o/a, b: o/b}\nsteps: {r: {merge: ties, base_model: a, models: [b]}}"
    assert read(text).recipe.expr == Merge("ties", (Member(Model("o/b")),), Model("o/a"))


def test_steps_in_any_order_and_models_based_on_steps(read):
    text = """
surgeon: 1
models: {a: o/a, b: o/b, lora: {model: o/lora, base_model: mid}}
steps:
  last: {combine: mid + lora}
  mid: {combine: 0.5*a + 0.5*b}
output: {files_from: b}
"""
    recipe = read(text).recipe
    mid = Model("o/a") * Fraction(1, 2) + Model("o/b") * Fraction(1, 2)
    assert recipe.expr == mid + Model("o/lora", mid)
    assert recipe.output.files_from == Model("o/b")


@pytest.mark.parametrize(
    ("ref", "read_as"),
    [
        ("./x", "/home/recipes/x"), ("../x", "/home/x"), ("/x/./y", "/x/y"), ("org/name", "org/name"),
        ("gpt2", "gpt2"), ("org/name@refs/pr/1", "org/name@refs/pr/1"),
    ],
)  # fmt: skip
def test_references(read, ref, read_as):
    text = f"surgeon: 1\nmodels: {{a: {ref}, b: o/b}}\nsteps: {{r: {{combine: 0.5*a + 0.5*b}}}}"
    model = read(text).recipe.expr.terms[0][0]
    assert (model.ref, model.probe) == (read_as, False)


@pytest.mark.parametrize("ref", ["a/b/c", "org//x", "has space/x", "-x", "org/na--me", "org/x@", "''"])
def test_what_is_no_reference_is_refused(faults, ref):
    text = f"surgeon: 1\nmodels: {{a: {ref}, b: o/b}}\nsteps: {{r: {{combine: 0.5*a + 0.5*b}}}}"
    assert any(line == 2 for line, _, _ in faults(text))


CHANGES = [
    # what is replaced, by what, line, column, what the message says
    ("surgeon: 1", "surgeon: 2", 1, 10, "surgeon: 1, not the number 2"),
    ("surgeon: 1", "surgeon: true", 1, 10, "surgeon: 1, not true"),
    ("surgeon: 1", "surgon: 1", 1, 1, "did you mean 'surgeon'"),
    ("org/base", "7", 3, 9, "mapping"),
    ("  math:", "  ma-th:", 4, 3, "hyphen"),
    ("math: {", "maht: {", 12, 7, "did you mean 'math'"),
    ("base_model: base}", "base_model: bsae}", 6, 48, "did you mean 'base'"),
    ("{model: ./ad", "{modle: ./ad", 6, 11, "did you mean 'model'"),
    ("  code: ./", "  unused: a/b\n  code: ./", 5, 3, "model 'unused' is not used"),
    ("merge: ties", "merge: tise", 9, 12, "did you mean 'ties'"),
    ("merge: ties", "merge: [ties]", 9, 12, "no merge method"),
    ("merge: ties", "stack: x", 8, 3, "has none of merge, combine, edit, reshape | write reshape: stack"),
    ("merge: ties", "marge: ties", 8, 3, "did you mean 'merge'"),
    ("    base_model: base\n", "", 8, 3, "'base_model' is missing in steps.merged"),
    ("base_model: base\n", "base_model: code\n", 13, 7, "'code' is the base model"),
    ("weight: 0.4", "weigth: 0.4", 13, 14, "did you mean 'weight'"),
    ("weight: 0.4", "lambda: 0.4", 13, 14, "a setting of the step"),
    ("weight: 0.4", "weight: half", 13, 22, "weight must be a number, not 'half'"),
    ("weight: 0.4", "weight: true", 13, 22, "weight must be a number, not True"),
    ("weight: 0.4", "weight: {search: [0, 1]}", 13, 22, "surgeon tune"),
    ("weight: 0.4", "weight: {value: 1}", 13, 22, "rules are a list"),
    ("weight: 0.4", "weight: 1e999", 13, 22, "out of range"),
    ("weight: 0.4", "weight: ", 13, 21, "weight takes a value or a list of them, not nothing"),
    ("combine: merged", "combine:\n    x: merged", 18, 5, "arithmetic over names, not nothing"),
    ("[0.2, 0.8]}\n      code", "[0.2, 1.8]}\n      code", 12, 42, "must lie in (0, 1]"),
    ("[0.2, 0.8]}\n      code", "[]}\n      code", 12, 36, "empty list"),
    ("[0.2, 0.8]}\n      code", "[[0.2], 1]}\n      code", 12, 37, "not a list inside"),
    ("density: 0.5", "density: 0", 14, 14, "must lie in (0, 1]"),
    ("density: 0.5", "normalize: 1", 14, 16, "true or false, not 1.0"),
    ("density: 0.5", "elect: weigthed", 14, 12, "did you mean 'weighted'"),
    ("density: 0.5", "semantics: other", 14, 16, "'paper' or 'mergekit'"),
    ("targets: \"*mlp*\"", "target: \"*mlp*\"", 15, 15, "did you mean 'targets'"),
    ("targets: \"*mlp*\"", "targets: \"re:(\"", 15, 25, "regular expression"),
    ("targets: \"*mlp*\"", "targets: role:mlp", 15, 24, "roles"),
    ("targets: \"*mlp*\", ", "", 15, 14, "never reached"),
    ("value: 0.2", "targets: x", 15, 46, "'value' is missing"),
    ("value: 0.2", "value: x", 15, 54, "a number, not 'x'"),
    ("merged + s", "merge + s", 17, 14, "did you mean 'merged'"),
    ("merged + s", "final + s", 16, 3, "circle"),
    ("schedules: {s:", "schedules: {style:", 18, 17, "already"),
    ("schedules: {s:", "schedules: {s: [1, 0], t:", 18, 28, "'t' is not used"),
    ("{s: [0.2, 0.8]}", "{s: 0.2}", 18, 20, "is one number"),
    ("combine: merged", "combine: [merged]\n    x: merged", 17, 14, "arithmetic over names"),
    ("  final:", "  math:", 16, 3, "name of a model already"),
    ("merged + s", "0*s", 8, 3, "one result"),
    ("bfloat16", "bf16", 19, 17, "did you mean 'bfloat16'"),
    ("5GB", "much", 19, 39, "5GB or 400MB"),
    ("5GB", "-1", 19, 39, "5GB or 400MB"),
    ("shard_size: 5GB", "rounding: compensate", 19, 37, "'nearest' or 'compensated'"),
    ("shard_size: 5GB", "files_from: mth", 19, 39, "did you mean 'math'"),
    ("shard_size: 5GB", "drop: ['re:[']", 19, 35, "regular expression"),
    ("shard_size: 5GB", "shards: 5GB", 19, 27, "did you mean 'shard_size'"),
    ("output:", "calibration: {}\noutput:", 19, 1, "calibration is not in this version"),
    ("steps:\n", "steps: {}\nother:\n", 7, 1, "there is no step"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "column", "message"), CHANGES)
def test_a_fault_has_a_place_a_reason_and_the_nearest_right_name(faults, valid, old, new, line, column, message):
    assert old in valid
    found = faults(valid.replace(old, new, 1))
    assert any((at, start) == (line, column) and message in text for at, start, text in found), found


def test_all_faults_at_once(faults, valid):
    text = valid.replace("weight: 0.4", "weigth: 0.4").replace("0.8]}\n      code", "1.8]}\n      code")
    text = text.replace("bfloat16", "bf16").replace("- base)", "- bse)").replace("./adapters/style", "a b")
    assert [line for line, _, _ in faults(text)] == [6, 12, 13, 17, 19]


def test_every_unknown_name_of_one_expression_is_told(faults, valid):
    found = faults(valid.replace("s * style - 0.1*(math", "s * stlye - 0.1*(mth"))
    assert [text for _, _, text in found] == [
        "nothing is called 'stlye' | did you mean 'style'?", "nothing is called 'mth' | did you mean 'math'?",
    ]  # fmt: skip


def test_a_fraction_is_a_number_wherever_one_is(read):
    models = "{a: {weight: 1/3}, b: {weight: 0/5}}"
    text = f"surgeon: 1\nmodels: {{a: o/a, b: o/b}}\nsteps: {{r: {{merge: linear, models: {models}}}}}"
    assert [dict(m.settings)["weight"] for m in read(text).recipe.expr.members] == [Fraction(1, 3), 0]


def test_one_cause_is_one_fault(faults, valid):
    """A step that cannot be read may have used everything; a misspelt name means the one next to it."""
    assert len(faults(valid.replace("s * style", "s ^ style"))) == 1
    assert len(faults(valid.replace("combine:", "edit:"))) == 1
    assert len(faults(valid.replace("code: {", "cod: {"))) == 1


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("merge: linear, models: [a, b]", "needs 'weight' for 'a'"),
        ("merge: linear, models: [a, a, b], weight: 1", "listed twice"),
        ("merge: fisher, base_model: a, models: [b]", "needs 'fisher' for 'b'"),
        ("reshape: stack, parts: []", "'parts' is empty"),
        ("stack: [a, b]", "has none of merge, combine, edit, reshape | write reshape: stack"),
        ("merge: linear, base_model: a, models: [b], weight: 1", "linear has no base model"),
        ("merge: linear, models: [], weight: 1", "at least 1 model, not 0"),
        ("merge: slerp, base_model: a, models: [b]", "'t' is missing"),
        ("merge: slerp, base_model: a, models: [b], t: 1.5", "must lie in [0, 1]"),
        ("merge: slerp, base_model: a, models: [], t: 0.5", "exactly 1 model besides the base, not 0"),
        ("merge: slerp, base_model: a, models: {b: {t: 0.5}}, t: 0.5", "a setting of the step"),
    ],
)
def test_what_a_method_asks_for(faults, step, message):
    found = faults(f"surgeon: 1\nmodels: {{a: o/a, b: o/b}}\nsteps: {{r: {{{step}}}}}")
    assert any(message in text for _, _, text in found), found


def test_a_schedule_times_a_step_that_has_schedules_is_refused(faults):
    text = """surgeon: 1
models: {a: o/a, b: o/b}
steps:
  mid: {combine: (1-s)*a + s*b, schedules: {s: [0, 1]}}
  end: {combine: t*mid, schedules: {t: [0, 1]}}
"""
    assert [(line, column) for line, column, _ in faults(text)] == [(5, 19)]


def test_steps_that_unfold_without_end_are_refused(faults):
    """Each step names the one before twice: forty short lines would be 2⁴⁰ parts."""
    lines = ["surgeon: 1", "models: {a: o/a, b: o/b}", "steps:", "  s0: {combine: 0.5*a + 0.5*b}"]
    for index in range(40):
        lines.append(f"  t{index}: {{merge: task_arithmetic, base_model: a, models: [s{index}]}}")
        lines.append(f"  s{index + 1}: {{merge: linear, models: [s{index}, t{index}], weight: 1}}")
    assert any("too large" in text for _, _, text in faults("\n".join(lines)))


def test_a_file_is_loaded_relative_to_its_folder(tmp_path, valid):
    file = tmp_path / "recipe.yaml"
    file.write_text("\ufeff" + valid, encoding="utf-8")
    loaded = load(file)
    assert loaded.notes == ()
    assert load_recipe(str(file)) == loaded.recipe
    assert str(tmp_path / "checkpoints/code") in {n.ref for n in walk(loaded.recipe.expr) if isinstance(n, Model)}


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\xff\xfe\x00", "UTF-8"), (b"x" * 4_000_002, "too large"), (None, "cannot read"), (b"[1]", "a mapping")],
)
def test_files_that_are_no_recipes(tmp_path, data, message):
    file = tmp_path / "recipe.yaml"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(RecipeError, match=message):
        load(file)
