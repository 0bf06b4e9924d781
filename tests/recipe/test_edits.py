"""Directions, and the steps that edit or reshape: what they mean, and every fault with its place."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from surgeon.artifacts.direction import direction
from surgeon.errors import Origin, RefusedError
from surgeon.recipe import dump_recipe, parse
from surgeon.space.expr import DirectionRef, Edit, Fit, Member, Merge, Model, Part, Reshape, settings, walk
from surgeon.space.output import Output
from surgeon.space.schedule import Layers

BASE = Model("org/base")
HEDGING = DirectionRef("/home/recipes/directions/hedging.safetensors")


def step(entry, directions="d: ./d.safetensors"):
    """A recipe of one step that edits `a`, along a direction `d`."""
    return f"surgeon: 1\nmodels: {{a: o/a}}\ndirections: {{{directions}}}\nsteps:\n  r: {{{entry}}}\n"


def edit(read, entry, directions="d: ./d.safetensors"):
    return read(step(f"edit: ablate, of: a, directions: [d]{entry}", directions)).recipe.expr


def test_merge_then_an_adapter_then_an_edit_along_what_was_measured_on_the_merge(read, edited):
    members = (
        Member(
            Model("someone/math"),
            settings({"weight": Fraction(3, 5), "density": Layers((Fraction(1, 5), Fraction(4, 5)))}),
        ),
        Member(Model("/home/recipes/checkpoints/code"), settings({"weight": Fraction(2, 5)})),
    )
    merged = Merge("ties", members, BASE)
    measured = Fit(
        "mean_difference",
        merged,
        "/home/recipes/contrast/sycophantic.jsonl",
        "/home/recipes/contrast/candid.jsonl",
        "block.14",
        settings({"neutral": "/home/recipes/neutral.jsonl", "position": "first:3", "guard": False}),
    )
    whole = Edit(
        "ablate",
        merged + Fraction(1, 2) * Model("/home/recipes/adapters/style"),
        (DirectionRef(measured), HEDGING),
        settings({"strength": Layers((Fraction(1, 2), Fraction(1)))}),
        layers=(8, 24),
        writers=("attention",),
    )
    recipe = read(edited).recipe
    assert recipe.expr == whole
    assert recipe.output == Output("BF16", rounding="compensated")
    assert parse(dump_recipe(recipe), file="dumped", folder=Path("/elsewhere")).recipe == recipe


def test_every_part_knows_its_name_and_where_it_was_written(read, edited):
    final = read(edited).recipe.expr
    assert (final.name, final.origin) == ("edited", Origin("r.yaml", 25, 3))
    sycophancy, hedging = final.directions
    assert (sycophancy.name, sycophancy.origin) == ("sycophancy", Origin("r.yaml", 8, 3))
    assert (sycophancy.source.name, sycophancy.source.origin) == ("sycophancy", Origin("r.yaml", 8, 3))
    assert (hedging.name, hedging.origin) == ("hedging", Origin("r.yaml", 17, 3))


@pytest.mark.parametrize(
    ("entry", "source", "at"),
    [
        ("d: ./d.safetensors", "/home/recipes/d.safetensors", ""),
        ("d: ../d", "/home/d", ""),
        ("d: sub/d", "/home/recipes/sub/d", ""),
        ("d: {file: /x/./d, at: own.mid}", "/x/d", "own.mid"),
        ("d: {file: d, at: block.3.mid}", "/home/recipes/d", "block.3.mid"),
    ],
)
def test_files_of_directions(read, entry, source, at):
    assert edit(read, "", entry).directions == (DirectionRef(source, at),)


def test_a_fit_without_more_is_a_bank_with_the_fitters_defaults(read):
    fit = edit(read, "", "d: {fit: mean_difference, model: a, positive: p, negative: n}").directions[0].source
    assert fit == Fit("mean_difference", Model("o/a"), "/home/recipes/p", "/home/recipes/n", "own")


@pytest.mark.parametrize(
    ("entry", "key", "value"),
    [
        (", layers: 8..24", "layers", (8, 24)),
        (", layers: 0..1", "layers", (0, 1)),
        (", writers: all", "writers", ()),
        (", writers: mlp", "writers", ("mlp",)),
        (", writers: [embed, attention]", "writers", ("embed", "attention")),
        (", tied: both", "tied", "both"),
        (", tied: untie", "tied", "untie"),
        (", allow_partial: true", "allow_partial", True),
        (", strength: -1/3", "settings", settings({"strength": Fraction(-1, 3)})),
    ],
)
def test_the_keys_of_an_edit(read, entry, key, value):
    found = edit(read, entry)
    assert getattr(found, key) == value
    assert parse(dump_recipe(found), file="dumped", folder=Path("/")).recipe.expr == found


def test_a_reshape(read):
    text = "surgeon: 1\nmodels: {a: o/a}\nsteps: {r: {reshape: untie, of: a}}"
    assert read(text).recipe.expr == Reshape("untie", (Part(Model("o/a")),))


def test_two_edits_use_one_direction_and_one_is_measured_on_the_other(read):
    text = """surgeon: 1
models: {a: o/a}
directions:
  again: {fit: mean_difference, model: first, positive: p, negative: n}
  d: ./d
steps:
  second: {edit: ablate, of: first, directions: [d, again], layers: 4..8}
  first: {edit: ablate, of: a, directions: [d], layers: 0..4}
"""
    second = read(text).recipe.expr
    first = second.of
    assert second.directions[0] == first.directions[0]
    assert second.directions[1].source.model == first
    written = dump_recipe(second)
    assert written.count("d: /home/recipes/d") == 1
    assert parse(written, file="dumped", folder=Path("/")).recipe.expr == second


CHANGES = [
    # what is replaced, by what, line, column, what the message says
    ("edit: ablate", "edit: ablaet", 26, 11, "there is no edit 'ablaet' | did you mean 'ablate'"),
    ("edit: ablate", "reshape: unite", 26, 14, "there is no reshape 'unite' | did you mean 'untie'"),
    ("edit: ablate", "edti: ablate", 25, 3, "did you mean 'edit'"),
    ("    of: styled\n", "", 25, 3, "'of' is missing in steps.edited"),
    ("of: styled", "of: stlyed", 27, 9, "nothing is called 'stlyed' | did you mean 'styled'"),
    ("of: styled", "of: hedging", 27, 9, "'hedging' is a direction, not a model or step"),
    ("of: styled", "of: ''", 27, 10, "nothing is called ''"),
    ("of: styled", "of: edited", 25, 3, "edited uses edited: a circle"),
    ("    directions: [sycophancy, hedging]\n", "", 25, 3, "'directions' is missing in steps.edited"),
    ("directions: [syc", "direction: [syc", 28, 5, "did you mean 'directions'"),
    ("[sycophancy, hedging]", "hedging", 28, 17, "'directions' is a list, not 'hedging'"),
    ("[sycophancy, hedging]", "[]", 28, 17, "an empty list of directions"),
    ("hedging]", "hegding]", 28, 30, "nothing is called 'hegding' | did you mean 'hedging'"),
    ("hedging]", "hedging, hedging]", 28, 39, "'hedging' is listed twice"),
    ("hedging]", "math]", 28, 30, "'math' is a model, not a direction"),
    ("hedging]", "styled]", 28, 30, "'styled' is a step, not a direction"),
    (", hedging]", "]", 17, 3, "direction 'hedging' is not used | name it in the directions of an edit"),
    ("0.5 * style", "0.5 * style + hedging", 24, 37, "directions: [hedging]"),
    ("strength: [0.5, 1]", "stregth: 1", 29, 5, "did you mean 'strength'"),
    ("strength: [0.5, 1]", "strength: much", 29, 15, "strength must be a number, not 'much'"),
    ("strength: [0.5, 1]", "strength: .nan", 29, 15, "strength must be a number, not '.nan'"),
    ("layers: 8..24", "layers: 8:24", 30, 13, "write a range as 8..24"),
    ("layers: 8..24", "layers: '8:24'", 30, 14, "write 8..24; YAML 1.1"),
    ("layers: 8..24", "layers: 8:64", 30, 13, "write 8..64; YAML 1.1"),
    ("layers: 8..24", "layers: 8", 30, 13, "a range such as 8..24, not the number 8"),
    ("layers: 8..24", "layers: [8, 24]", 30, 13, "a range such as 8..24, not a list"),
    ("layers: 8..24", "layers: 8..8", 30, 13, "holds no block | the end is not part of it: 8..9 is block 8"),
    ("layers: 8..24", "layers: -8..24", 30, 13, "a range such as 8..24"),
    ("writers: attention", "writers: atention", 31, 14, "did you mean 'attention'"),
    ("writers: attention", "writers: [mlp, atention]", 31, 20, "did you mean 'attention'"),
    ("writers: attention", "writers: [mlp, all]", 31, 20, "it stands alone"),
    ("writers: attention", "writers: [mlp, mlp]", 31, 20, "'mlp' is listed twice"),
    ("writers: attention", "writers: []", 31, 14, "an empty list of writers"),
    ("writers: attention", "writers: 1", 31, 14, "there are no writers the number 1"),
    ("writers: attention", "tied: unite", 31, 11, "'untie', 'both' or 'skip'"),
    ("writers: attention", "allow_partial: 1", 31, 20, "boolean"),
    ("  hedging:", "  math:", 17, 3, "'math' is the name of a model already"),
    ("  styled:", "  hedging:", 23, 3, "'hedging' is the name of a direction already"),
    ("fit: mean_difference", "fit: mean_diference", 9, 10, "there is no fitter 'mean_diference' | did you mean"),
    ("fit: mean_difference", "fti: mean_difference", 8, 3, "has neither file nor fit | did you mean 'fit'"),
    ("    model: merged\n", "", 8, 3, "'model' is missing in directions.sycophancy"),
    ("model: merged", "model: mergd", 10, 12, "did you mean 'merged'"),
    ("model: merged", "model: edited", 25, 3, "a circle"),
    ("model: merged", "model: hedging", 10, 12, "'hedging' is a direction, not a model or step"),
    ("    negative: ./contrast/candid.jsonl\n", "", 8, 3, "'negative' is missing"),
    ("negative:", "negativ:", 12, 5, "did you mean 'negative'"),
    ("./contrast/candid.jsonl", "''", 12, 16, "a path is missing"),
    ("./contrast/candid.jsonl", "7", 12, 15, "a text, not the number 7"),
    ("./contrast/candid.jsonl", '"a\\0b"', 12, 15, "NUL"),
    ("first:3", "frist:3", 14, 15, "'frist:3' is no position | use last, response"),
    ("at: block.14", "at: block14", 15, 9, "at is a residual point, not 'block14'"),
    ("at: block.14", "at: 14", 15, 9, "did you mean block.14?"),
    ("at: block.14", "at: block.07", 15, 9, "residual point"),
    ("guard: false", "guard: 1", 16, 12, "guard must be true or false"),
    ("guard: false", "winsorise: [0.9, 1]", 16, 16, "winsorise is one value"),
    ("guard: false", "winsorise: 1.5", 16, 16, "winsorise must lie in (0, 1]"),
    ("guard: false", "project: nuetral", 16, 14, "did you mean 'neutral'"),
    ("./directions/hedging.safetensors", "{file: ./d, at: block.x}", 17, 28, "residual point"),
    ("./directions/hedging.safetensors", "{file: ./d, point: own}", 17, 24, "known: at, file"),
    ("./directions/hedging.safetensors", "{}", 17, 3, "neither file nor fit"),
    ("./directions/hedging.safetensors", "7", 17, 12, "a path, or a mapping"),
    ("./directions/hedging.safetensors", "~nobody-of-this-name/x", 17, 12, "home folder"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "column", "message"), CHANGES)
def test_a_fault_has_a_place_a_reason_and_the_nearest_right_name(faults, edited, old, new, line, column, message):
    assert old in edited
    found = faults(edited.replace(old, new, 1))
    assert any((at, start) == (line, column) and message in text for at, start, text in found), found


def test_all_faults_at_once(faults, edited):
    text = edited.replace("first:3", "frist").replace("8..24", "24..8").replace("writers: att", "writers: at")
    text = text.replace("hedging]", "hegding]").replace("false", "7").replace("of: styled", "of: stlyed")
    assert [line for line, _, _ in faults(text)] == [14, 16, 27, 28, 30, 31]


def test_one_cause_is_one_fault(faults, edited):
    """A step or direction that cannot be read may have used everything."""
    for old, new in [
        ("edit: ablate", "edit: ablaet"), ("    of: styled\n", ""), ("[sycophancy, hedging]", "7"),
        ("    model: merged\n", ""),
        ("[sycophancy, hedging]", "[]"), ("fit: mean_difference", "fit: mean"), ("hedging]", "hegding]"),
    ]:  # fmt: skip
        assert len(faults(edited.replace(old, new))) == 1, (old, new)
    text = step("edit: ablate, of: a, directions: [d]", "d: {fit: mean_difference, positive: p, negative: n}")
    assert len(faults(text.replace("{a: o/a}", "{a: o/a, meant: o/b}"))) == 1


def test_a_circle_through_a_direction_is_told_with_its_way(faults):
    directions = "d: {fit: mean_difference, model: r, positive: p, negative: n}"
    found = faults(step("edit: ablate, of: a, directions: [d]", directions))
    assert [text for _, _, text in found] in (["d uses r uses d: a circle | "], ["r uses d uses r: a circle | "])


def test_a_step_that_only_a_fit_uses_is_not_the_result(read):
    text = """surgeon: 1
models: {a: o/a, b: o/b}
directions: {d: {fit: mean_difference, model: mean, positive: p, negative: n}}
steps:
  edited: {edit: ablate, of: a, directions: [d]}
  mean: {combine: 0.5*a + 0.5*b}
"""
    assert read(text).recipe.expr.name == "edited"


def test_overrides(read, edited, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = {
        "models.base": "./x", "steps.edited.strength": "2", "steps.edited.layers": "4..6", "steps.edited.tied": "skip",
        "directions.hedging": "./mine", "directions.sycophancy.positive": "p.jsonl", "directions.sycophancy.at": "own",
    }  # fmt: skip
    final = read(edited, set=changed).recipe.expr
    assert dict(final.settings) == {"strength": 2}
    assert (final.layers, final.tied) == ((4, 6), "skip")
    assert {node.ref for node in walk(final) if isinstance(node, Model)} >= {str(tmp_path / "x")}
    fit, stored = (use.source for use in final.directions)
    assert (fit.positive, fit.at) == (str(tmp_path / "p.jsonl"), "own")
    assert fit.negative == "/home/recipes/contrast/candid.jsonl"
    assert stored == str(tmp_path / "mine")


def test_an_override_of_a_file_keeps_its_point(read):
    text = step("edit: ablate, of: a, directions: [d]", "d: {file: ./d, at: own}")
    assert read(text, set={"directions.d": "/x/d"}).recipe.expr.directions == (DirectionRef("/x/d", "own"),)


def test_overrides_name_what_there_is(faults, edited):
    assert "did you mean 'hedging'" in faults(edited, set={"directions.hegding": "./x"})[0][2]
    assert "did you mean 'strength'" in faults(edited, set={"steps.edited.stregth": "1"})[0][2]


def test_a_path_is_written_as_it_is(read):
    """The resolved recipe names the artifacts that lie beside it."""
    whole = Edit("ablate", Model("o/a"), (DirectionRef("./hedging.safetensors", "own"),))
    written = dump_recipe(whole)
    assert "  hedging:\n    file: ./hedging.safetensors\n    at: own\n" in written
    assert read(written).recipe.expr.directions == (DirectionRef("/home/recipes/hedging.safetensors", "own"),)


def test_the_files_of_a_fit_are_written_absolute(tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    fit = Fit("mean_difference", Model("o/a"), "p", "n", settings=settings({"neutral": "x"}))
    found = read(dump_recipe(Edit("ablate", Model("o/a"), (DirectionRef(fit),)))).recipe.expr.directions[0].source
    assert (found.positive, found.negative) == (str(tmp_path / "p"), str(tmp_path / "n"))
    assert dict(found.settings) == {"neutral": str(tmp_path / "x")}


def test_a_bank_used_at_one_point_is_written_as_measured_there(read):
    fit = Fit("mean_difference", Model("o/a"), "/p", "/n", "own")
    found = read(dump_recipe(Edit("ablate", Model("o/a"), (DirectionRef(fit, "block.3"),)))).recipe.expr.directions[0]
    assert (found.source.at, found.at) == ("block.3", "")


def test_a_direction_in_memory_is_refused_with_what_to_do():
    held = DirectionRef(direction(torch.ones(4), at="block.0"), name="hedging")
    with pytest.raises(RefusedError, match=r"hedging is in memory only(.|\n)*save it first: direction\.save\(path\)"):
        dump_recipe(Edit("ablate", Model("o/a"), (held,)))
