"""mergekit's YAML: what it means there is what it means here, or it is refused, or a note says so."""

from fractions import Fraction

import pytest

from surgeon.space.expr import Combination, Member, Merge, Model, settings
from surgeon.space.schedule import Layers, Rule, Rules

A, B, C = Model("o/a"), Model("o/b"), Model("o/c")


def merge(method, members, base=None, **shared):
    return Merge(method, tuple(members), base, settings(shared), "mergekit")


def member(model, **own):
    return Member(model, settings({name: Fraction(value) if value != "" else value for name, value in own.items()}))


def test_ties_elects_on_weighted_task_vectors(read):
    loaded = read("""
merge_method: ties
base_model: o/a
models:
- model: o/a
- model: o/b
  parameters: {weight: 0.5, density: 0.4}
- {model: o/c, parameters: {weight: 1}}
parameters: {normalize: no, int8_mask: true, lambda: "1e-1", density: 0.9}
dtype: bfloat16
out_dtype: float32
""")
    expected = merge(
        "ties",
        [member(B, weight="0.5", density="0.4"), member(C, weight=1, density="0.9")],
        A,
        normalize=False,
        elect="weighted",
        **{"lambda": Fraction(1, 10)},
    )
    assert loaded.recipe.expr == expected
    assert loaded.recipe.output.dtype == "F32"
    assert [name for name in ("int8_mask", "bfloat16") if any(name in note for note in loaded.notes)] == [
        "int8_mask",
        "bfloat16",
    ]


def test_names_and_places(read):
    merged = read("merge_method: linear\nmodels:\n- model: o/a\n- model: o/b\nparameters: {weight: 1}").recipe.expr
    assert [(m.of.name, m.of.origin.line, m.of.probe) for m in merged.members] == [("m0", 3, True), ("m1", 4, True)]


def test_precedence_is_model_then_global_first_match_wins(read):
    merged = read("""
merge_method: linear
models:
- model: o/a
  parameters:
    weight: [{filter: mlp, value: [0, 1]}, {filter: "q[0]*", value: 0.3}]
- model: o/b
  parameters: {weight: {filter: "*", value: 2}}
- model: o/c
parameters:
  weight: [{filter: norm, value: 0.7}, {value: 0.1}, {filter: never, value: 9}]
""").recipe.expr
    tail = (Rule("*norm*", Fraction(7, 10)), Rule(None, Fraction(1, 10)))
    first = (Rule("*mlp*", Layers((Fraction(0), Fraction(1)))), Rule("*q[[]0][*]*", Fraction(3, 10)))
    assert [dict(m.settings)["weight"] for m in merged.members] == [Rules(first + tail), 2, Rules(tail)]


@pytest.mark.parametrize("empty", ["{}", "", "null"])
def test_parameters_may_be_empty_as_programs_write_them(read, empty):
    text = "merge_method: linear\nmodels:\n- model: o/a\n  parameters: {empty}\n- model: o/b\nparameters: {{weight: 1}}"
    plain = "merge_method: linear\nmodels:\n- model: o/a\n- model: o/b\nparameters: {weight: 1}"
    assert read(text.format(empty=empty)).recipe.expr == read(plain).recipe.expr


@pytest.mark.parametrize("listed", ["[{model: o/a}, {model: o/b}]", "[{model: o/b}, {model: o/a}]", "[{model: o/b}]"])
def test_slerp_moves_from_its_base_whatever_the_order(read, listed):
    loaded = read(f"merge_method: slerp\nbase_model: o/a\nmodels: {listed}\nparameters: {{t: [0, 0.5, 1]}}")
    assert loaded.recipe.expr == merge("slerp", [Member(B)], A, t=Layers((Fraction(0), Fraction(1, 2), Fraction(1))))


def test_a_base_that_a_method_ignores_is_one_more_model(read, faults):
    text = "merge_method: linear\nbase_model: o/c\nmodels:\n- model: o/a\n- model: o/b\n"
    loaded = read(text + "parameters: {weight: 0.5}")
    assert [m.of for m in loaded.recipe.expr.members] == [A, B, C]
    assert loaded.recipe.output.files_from == C
    assert any("one more model" in note for note in loaded.notes)
    each = text.replace("o/a", "o/a\n  parameters: {weight: 1}").replace("o/b", "o/b\n  parameters: {weight: 1}")
    assert [(line, text) for line, _, text in faults(each) if "needs weight" in text]


def test_adapters(read):
    loaded = read("""
merge_method: task_arithmetic
base_model: o/a
models:
- {model: o/a+o/lora, parameters: {weight: 1}}
- {model: {model: {path: o/b, revision: v1}, lora: {path: o/lora2}}, parameters: {weight: 2}}
""")
    first = A + Model("o/lora")
    second = Model("o/b@v1") + Model("o/lora2")
    assert loaded.recipe.expr == merge("task_arithmetic", [member(first, weight=1), member(second, weight=2)], A)
    assert isinstance(first, Combination)
    names = [term.name for m in loaded.recipe.expr.members for term, _ in m.of.terms]
    assert names == ["m0", "m0_lora", "m1", "m1_lora"]


def test_paths_are_relative_to_the_working_directory_and_win_if_they_exist(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "a+b").mkdir(parents=True)
    models = "- model: models/a+b\n- model: models@v2\n- model: o/c@v2\n"
    loaded = read(f"merge_method: linear\nmodels:\n{models}parameters: {{weight: 1}}")
    refs = [m.of.ref for m in loaded.recipe.expr.members]
    assert refs == [str(tmp_path / "models" / "a+b"), str(tmp_path / "models"), "o/c@v2"]
    assert any("revision 'v2' is ignored" in note for note in loaded.notes)


LINEAR = (
    "merge_method: linear\nmodels:\n- {model: o/a, parameters: {weight: 1}}\n- {model: o/b, parameters: {weight: 1}}\n"
)
SLICES = """merge_method: linear
parameters: {weight: 0.5}
dtype: float32
slices:
- sources:
  - {model: o/a, layer_range: [0, 2]}
  - {model: o/b, layer_range: [1, 3]}
- sources:
  - {model: o/c, layer_range: [2, 4], parameters: {weight: [0, 1]}}
"""
TIES = LINEAR.replace("linear", "ties") + "base_model: o/c\n"


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (LINEAR + "parameters: {density: 0.5}", "density has no effect with mergekit's linear"),
        (LINEAR + "parameters: {t: 0.5, embed_slerp: true}", "embed_slerp has no effect"),
        (LINEAR + "dtype: float16", "float32 is rounded once"),
        (TIES.replace("weight: 1", "weight: 1, lambda: 2"), "lambda of m0 has no effect"),
        (TIES + "parameters: {int8_mask: true}", "int8_mask"),
        (TIES.replace("ties", "task_arithmetic") + "parameters: {rescale: true}", "rescale has no effect"),
        (TIES.replace("o/c", "o/a"), "parameters of the base model have no effect"),
    ],
)
def test_what_mergekit_ignores_is_a_note(read, text, note):
    notes = read(text).notes
    assert any(note in each for each in notes), notes


BARE = "models:\n- {model: o/a}\n- {model: o/b}\n"


@pytest.mark.parametrize(
    ("text", "expected", "notes"),
    [
        (
            "merge_method: nuslerp\nbase_model: o/c\n" + BARE + "parameters: {weight: 1, nuslerp_row_wise: true}",
            merge(
                "nuslerp", [member(A, weight=1), member(B, weight=1)], C, nuslerp_row_wise=True,
                row_wise_means="columns", opposite="linear", cancelling="half",
            ),
            ["columns for vectors", "along the line", "sum to zero"],
        ),
        (
            "merge_method: nuslerp\n" + BARE + "parameters: {weight: 1}",
            merge(
                "nuslerp", [member(A, weight=1), member(B, weight=1)],
                row_wise_means="columns", opposite="linear", cancelling="half",
            ),
            ["columns for vectors", "along the line", "sum to zero"],
        ),
        (
            "merge_method: karcher\n" + BARE + "parameters: {weight: 2, tol: 1e-3}",
            merge("karcher", [Member(A), Member(B)], tol=Fraction(1, 1000), max_iter=Fraction(10), opposite="refuse"),
            ["at most 10 steps", "started from the first", "weight has no effect"],
        ),
        (
            "merge_method: model_stock\nbase_model: o/c\n" + BARE + "parameters: {filter_wise: yes}",
            merge(
                "model_stock", [Member(A), Member(B)], C, filter_wise=True, clamp=False, floor=Fraction(1, 10**6)
            ),
            ["t may leave 0 to 1", "nearer to orthogonal"],
        ),
        (
            "merge_method: arcee_fusion\nbase_model: o/a\n" + BARE,
            merge("arcee_fusion", [Member(B)], A, divergence_in="float32"),
            ["a million random entries", "float32"],
        ),
        (
            "merge_method: nearswap\nbase_model: o/a\n" + BARE + "parameters: {t: 0.01}",
            merge("nearswap", [Member(B)], A, t=Fraction(1, 100)),
            [],
        ),
        (
            "merge_method: passthrough\nmodels: [{model: o/a, parameters: {scale: 0.5}}]",
            merge("passthrough", [member(A, scale="0.5")]),
            [],
        ),
    ],
)  # fmt: skip
def test_methods_of_which_mergekit_has_its_own_reading(read, text, expected, notes):
    loaded = read(text)
    assert loaded.recipe.expr == expected
    assert [told for told in notes if not any(told in note for note in loaded.notes)] == []
    assert len([note for note in loaded.notes if "has no effect" not in note]) <= len(notes)


@pytest.mark.parametrize(
    ("method", "expected", "notes"),
    [
        ("dare_linear", {"rescale_by": "norm"}, ["L1 norm"]),
        (
            "dare_ties",
            {"rescale_by": "norm", "elect": "weighted", "normalize": False},
            ["L1", "signs", "summed unless"],
        ),
        (
            "della",
            {"window": "either_side", "rescale_by": "norm", "elect": "weighted"},
            ["twice epsilon", "L1", "signs"],
        ),
        ("della_linear", {"window": "either_side", "rescale_by": "norm"}, ["twice epsilon", "L1"]),
        ("breadcrumbs", {"least": Fraction(0)}, ["keeps one"]),
        (
            "breadcrumbs_ties",
            {"least": Fraction(0), "elect": "weighted", "normalize": False},
            ["keeps one", "signs", "sum"],
        ),
    ],
)
def test_mergekits_semantics_hold_and_each_difference_is_a_note(read, method, expected, notes):
    loaded = read(TIES.replace("ties", method))
    assert dict(loaded.recipe.expr.settings) == expected
    assert len(loaded.notes) == len(notes)
    for note, words in zip(loaded.notes, notes, strict=True):
        assert note.startswith(f"mergekit's {method}: ")
        assert words in note


def test_sce_weighs_equally_below_mergekits_floor(read):
    models = "merge_method: sce\nbase_model: o/c\nmodels:\n- model: o/a\n- model: o/b\n"
    loaded = read(models)
    assert dict(loaded.recipe.expr.settings) == {"floor": Fraction(1, 10**6), "least": 0}
    assert any("weigh the same" in note for note in loaded.notes)


def test_a_default_of_mergekits_gives_way_to_what_the_recipe_says(read):
    loaded = read(TIES.replace("ties", "dare_ties") + "parameters: {normalize: true, rescale: false}")
    given = dict(loaded.recipe.expr.settings)
    assert given["normalize"] is True
    assert given["rescale"] is False
    assert not any("normalize" in note for note in loaded.notes)


def test_ties_rescales_as_mergekit_does(read):
    assert dict(read(TIES + "parameters: {rescale: true}").recipe.expr.settings)["rescale"] is True


def test_what_changes_nothing_is_no_note(read):
    (elected,) = read(TIES + "parameters: {rescale: false, normalize: true}").notes
    assert "mergekit's ties: signs are elected by weighted" in elected


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (LINEAR + "slices: []", 1, "there are models and slices: a merge has one of"),
        ("merge_method: linear\nslices: []", 2, "slices is a list of"),
        ("merge_method: linear\nmodules: {}", 2, "modules is a mapping of"),
        ("merge_method: linear\nmodules: {eyes: {models: []}}", 2, "there is no module 'eyes'"),
        ("merge_method: linear\nmodules: {vision_tower: {modles: []}}", 2, "did you mean 'models'"),
        (SLICES.replace("layer_range: [1, 3]", "layer_range: [1, 4]"), 5, "different numbers of layers: 2 and 3"),
        (SLICES.replace("layer_range: [1, 3]", "layer_range: [3, 1]"), 7, "[3, 1] holds no layer"),
        (SLICES.replace("layer_range: [1, 3]", "layer_range: 1..3"), 7, "two whole numbers, not '1..3'"),
        (SLICES.replace(", layer_range: [1, 3]", ""), 7, "'layer_range' is missing"),
        (SLICES.replace("layer_range: [1, 3]", "layer_rnage: [1, 3]"), 7, "did you mean 'layer_range'"),
        (SLICES.replace("o/b", "o/a"), 7, "o/a is listed twice in one slice"),
        (SLICES.replace("sources", "source"), 5, "did you mean 'sources'"),
        (SLICES.replace("linear", "ties") + "base_model: o/c", 6, "base model o/c is not among the sources"),
        (SLICES + "---\n" + SLICES + "---\n" + SLICES, 11, "only one document goes without a name"),
        ("name: x\n" + SLICES + "---\n" + SLICES, 1, "document 'x' is used by no other"),
        ("name: x\n" + SLICES.replace("o/a", "y") + "---\nname: y\n" + SLICES.replace("o/a", "x"), 1, "a circle"),
        (LINEAR + "dtype: int64", 5, "'int64' is not a dtype"),
        (LINEAR + "out_dtype: bf16", 5, "did you mean 'bfloat16'"),
        (LINEAR + "paramters: {}", 5, "did you mean 'parameters'"),
        (LINEAR.replace("weight", "weihgt"), 3, "did you mean 'weight'"),
        (LINEAR.replace("parameters", "paramters"), 3, "did you mean 'parameters'"),
        (LINEAR.replace("o/b", "o/a"), 4, "o/a is listed twice"),
        (LINEAR.replace("linear", "liner"), 1, "did you mean 'linear'"),
        (LINEAR.replace("linear", "[linear]"), 1, "no merge method a list"),
        (LINEAR.replace("weight: 1}", "}"), 3, "needs weight for every model"),
        (LINEAR.replace("weight: 1", "weight: x"), 3, "weight must be a number, not 'x'"),
        (LINEAR.replace("weight: 1", "weight: {filter: x}"), 3, "filter: TEXT, value: VALUE"),
        (LINEAR.replace("weight: 1", "weight: [{filters: x, value: 1}]"), 3, "did you mean 'filter'"),
        (LINEAR.replace("o/a", "o/a+x+y"), 3, "more than one adapter"),
        (LINEAR.replace("o/a", "7"), 3, "a path or Hub id"),
        (LINEAR.replace("o/a", "no/such/path"), 3, "there is no 'no/such/path' here"),
        (LINEAR.replace("o/a", "{model: {path: o/a}, override_architecture: X}"), 3, "override_architecture"),
        (LINEAR.replace("model: o/a, ", ""), 3, "no model"),
        (LINEAR + "parameters: []", 5, "parameters is a mapping"),
        ("merge_method: linear", 1, "'models' is missing: a merge has one of models, slices, modules"),
        ("merge_method: linear\nmodels: {}", 2, "models is a list"),
        (TIES.replace("base_model: o/c\n", ""), 1, "ties needs base_model"),
        (TIES.replace("ties", "dare_ties") + "parameters: {seed: 1}", 6, "unknown parameter 'seed'"),
        (TIES.replace("ties", "della") + "parameters: {window: width}", 6, "unknown parameter 'window'"),
        (TIES.replace("ties", "breadcrumbs") + "parameters: {gamma: 1}", 6, "must lie in [0, 1)"),
        (TIES + "parameters: {elect: trimmed}", 6, "unknown parameter 'elect'"),
        (TIES.replace("weight: 1", "weight: 1, density: 0"), 3, "must lie in (0, 1]"),
        (TIES.replace("ties", "slerp"), 1, "slerp needs t"),
        (TIES.replace("ties", "nearswap"), 1, "nearswap needs t"),
        (LINEAR.replace("linear", "passthrough"), 1, "takes exactly 1 model"),
        (LINEAR.replace("linear", "nuslerp") + "parameters: {row_wise_means: rows}", 5, "unknown parameter"),
        (TIES.replace("ties", "slerp") + "parameters: {t: 0.5}", 1, "exactly 1 model besides the base, not 2"),
    ],
)
def test_what_is_not_done_is_refused_with_its_line(faults, text, line, message):
    found = faults(text)
    assert any(at == line and message in each for at, _, each in found), found
