"""Merges with data: by file or measured while the recipe runs, the same bytes; what does not fit is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import surgeon
from surgeon.artifacts.gram import Gram
from surgeon.methods.regmean import regmean
from surgeon.recipe import dump_recipe, parse
from surgeon.testing.toys import read_checkpoint

TINY = Path(__file__).parents[1] / "data/tiny"
WORDS = "tree sun moon house car river".split()
RECIPE = f"""\
surgeon: 1
models:
  base: {TINY / "model"}
  list: {TINY / "adapters/list"}
  initials: {TINY / "adapters/initials"}
steps:
  merged:
    merge: METHOD
    base_model: base
    models: {{list: {{KIND: LIST}}, initials: {{KIND: INITIALS}}}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with prompts for both skills, and neutral ones."""
    for name, text in (("list", "List: {}, {}"), ("initials", "Initials of {} {}")):
        prompts = (text.format(*pair) for pair in zip(WORDS, reversed(WORDS), strict=True))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in prompts))
    (tmp_path / "neutral.jsonl").write_text("".join(json.dumps({"prompt": f"Say {word}"}) + "\n" for word in WORDS))
    return tmp_path


def recipe(place: Path, method: str, kind: str, *values: str, more: str = "") -> Path:
    """The recipe with these values for the two models, and further keys of the step."""
    text = RECIPE.replace("METHOD", method).replace("KIND", kind)
    for name, value in zip(("LIST", "INITIALS"), values, strict=True):
        text = text.replace(name, value)
    (place / "recipe.yaml").write_text(text + more)
    return place / "recipe.yaml"


def measure(place: Path, kind: str) -> None:
    verb = getattr(surgeon, f"measure_{kind}")
    for name in ("list", "initials"):
        prompts, adapter = place / f"{name}.jsonl", TINY / "adapters" / name
        verb(TINY / "model", place / f"{name}.safetensors", adapter=adapter, prompts=prompts)
    verb(TINY / "model", place / "base.safetensors", prompts=place / "neutral.jsonl")


@pytest.mark.parametrize(("method", "kind"), [("regmean", "gram"), ("fisher", "fisher")])
def test_files_and_fits_give_the_same_bytes(place: Path, method: str, kind: str):
    measure(place, kind)
    guard = f"    guard: 0.5\n    base_{kind}: "
    file = recipe(
        place, method, kind, "./list.safetensors", "./initials.safetensors", more=f"{guard}./base.safetensors\n"
    )
    surgeon.apply(file, place / "files")
    fits = (f"{{fit: {kind}, prompts: ./{name}.jsonl}}" for name in ("list", "initials"))
    fitted = recipe(place, method, kind, *fits, more=f"{guard}{{fit: {kind}, prompts: ./neutral.jsonl}}\n")
    plan = surgeon.plan(fitted)
    assert [fit.name for fit in plan.fits] == [f"list.{kind}", f"initials.{kind}", f"base_{kind}"]
    assert "first measured:" in plan.explain()
    surgeon.apply(fitted, place / "fits")
    one, other = (load_file(place / name / "model.safetensors") for name in ("files", "fits"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(value, read_checkpoint(TINY / "model")[name]) for name, value in one.items())
    kept = {path.name for path in (place / "fits/surgeon").iterdir()}
    assert kept == {
        "recipe.yaml",
        *(f"{name}.safetensors" for name in (f"list.{kind}", f"initials.{kind}", f"base_{kind}")),
    }
    assert {path.name for path in (place / "files/surgeon").iterdir()} == {"recipe.yaml"}
    assert not (place / "fits.stages").exists()
    for name in ("files", "fits"):
        assert surgeon.verify(place / name).exit_code == 0
    surgeon.apply(place / "fits/surgeon/recipe.yaml", place / "again")
    assert (place / "again/model.safetensors").read_bytes() == (place / "fits/model.safetensors").read_bytes()


def test_what_is_written_is_the_method_on_the_tensors(place: Path):
    measure(place, "gram")
    base, members = (
        surgeon.open(TINY / "model"),
        [surgeon.open(TINY / "adapters" / name) for name in ("list", "initials")],
    )
    files = [place / "list.safetensors", place / "initials.safetensors"]
    merged = surgeon.merge("regmean", members, base_model=base, gram=files, base_gram=place / "base.safetensors")
    surgeon.apply(merged, place / "out", dtype="float32")
    point = read_checkpoint(TINY / "model")
    for name, member in zip("ab", members, strict=True):
        surgeon.apply(base + member, place / name, dtype="float32")
    models = [read_checkpoint(place / name) for name in "ab"]
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.2.self_attn.o_proj.weight"):
        grams = [Gram.load(file) for file in (*files, place / "base.safetensors")]
        found = [gram.tensors[gram.places[name].entry] for gram in grams]
        vectors = torch.stack([model[name] for model in models]) - point[name].float()
        expected = point[name].float() + regmean(vectors, gram=found[:2], base_gram=found[2])
        torch.testing.assert_close(read_checkpoint(place / "out")[name], expected, rtol=1e-5, atol=1e-6)


def test_the_guard_is_on_unless_it_is_switched_off(place: Path):
    measure(place, "gram")
    given = "./list.safetensors", "./initials.safetensors"
    guarded = surgeon.plan(recipe(place, "regmean", "gram", *given))
    assert [fit.name for fit in guarded.fits] == ["base_gram"]
    assert "base_gram: gram over the neutral text that comes with surgeon, on base (an input)" in guarded.explain()
    assert surgeon.plan(recipe(place, "regmean", "gram", *given, more="    guard: 0\n")).fits == ()


def test_planning_reads_headers_alone(place: Path, monkeypatch: pytest.MonkeyPatch):
    measure(place, "gram")
    more = "    base_gram: ./base.safetensors\n"
    file = recipe(place, "regmean", "gram", "./list.safetensors", "./initials.safetensors", more=more)

    def refuse(*given):
        raise AssertionError("an entry was read whole")

    monkeypatch.setattr("surgeon.artifacts.per_tensor._Lazy.__getitem__", refuse)
    plan = surgeon.plan(file)
    assert [name for name, _ in plan.inputs] == ["base", "list", "initials", "list", "initials", "base"]
    surgeon.apply(file, place / "out")


def test_a_gram_of_another_model_is_refused(place: Path):
    measure(place, "gram")
    swapped = recipe(place, "regmean", "gram", "./initials.safetensors", "./list.safetensors", more="    guard: 0\n")
    with pytest.raises(surgeon.MismatchError, match="measured on another model") as caught:
        surgeon.plan(swapped)
    assert "--any-model" in str(caught.value.hint)
    surgeon.plan(swapped, any_model=True)


def test_grams_that_lack_a_tensor_or_do_not_fit_are_refused(place: Path):
    measure(place, "gram")
    whole = Gram.load(place / "list.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    places = {tensor: list(place) for tensor, place in whole.places.items() if tensor != name}
    Gram(dict(whole.tensors), {**whole.about, "tensors": places}).save(place / "less.safetensors")
    given = "./less.safetensors", "./initials.safetensors"
    with pytest.raises(surgeon.MismatchError, match=f"less.safetensors has nothing for {name}"):
        surgeon.plan(recipe(place, "regmean", "gram", *given, more="    guard: 0\n"))
    narrow = {entry: value[:9, :9].contiguous() for entry, value in whole.tensors.items()}
    Gram(narrow, whole.about).save(place / "less.safetensors")
    with pytest.raises(surgeon.MismatchError, match=r"is \[9, 9\]; a tensor .* needs"):
        surgeon.plan(recipe(place, "regmean", "gram", *given, more="    guard: 0\n"))
    Gram(narrow, {**whole.about, "tensors": {name: ["nowhere", -1]}}).save(place / "less.safetensors")
    with pytest.raises(surgeon.CheckpointError, match="is given an entry that is not there"):
        surgeon.plan(recipe(place, "regmean", "gram", *given, more="    guard: 0\n"))


def test_mistakes_in_a_fit_are_found_where_they_stand(place: Path):
    with pytest.raises(surgeon.RecipeError, match=r"recipe.yaml:10.*fit"):
        surgeon.plan(recipe(place, "regmean", "gram", "{fit: grams}", "{fit: gram}"))
    with pytest.raises(surgeon.RecipeError, match=r"missing.jsonl: No such file"):
        surgeon.plan(recipe(place, "regmean", "gram", "{fit: gram, prompts: ./missing.jsonl}", "{fit: gram}"))
    with pytest.raises(surgeon.RecipeError, match="nothing is called 'other'"):
        surgeon.plan(recipe(place, "regmean", "gram", "{fit: gram, model: other}", "{fit: gram}"))


def test_a_fit_reads_back_equal(place: Path):
    base, one = surgeon.open(TINY / "model"), surgeon.open(TINY / "adapters/list")
    fit = surgeon.DataFit("gram", str(place / "list.jsonl"), model=base + 0.5 * one)
    merged = surgeon.merge("regmean", [one], base_model=base, gram=fit, base_gram=surgeon.DataFit("gram"))
    assert parse(dump_recipe(merged), file="recipe", folder=place).recipe.expr == merged


def test_a_file_that_is_there_is_kept(place: Path):
    surgeon.measure_gram(TINY / "model", place / "g.safetensors", prompts=place / "list.jsonl")
    with pytest.raises(surgeon.OutputError, match="exists"):
        surgeon.measure_gram(TINY / "model", place / "g.safetensors")
    report = surgeon.measure_gram(TINY / "model", place / "g.safetensors", prompts=place / "list.jsonl", overwrite=True)
    assert report.to_dict()["tensors"] == 21
    assert "merge: regmean" in report.summary()
