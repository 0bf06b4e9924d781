"""Laws: every expression can be written and reads back equal; no text raises anything but a SurgeonError."""

import json
import re
import string
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from surgeon.anatomy.token_rows import TokenSource
from surgeon.artifacts.artifact import Artifact
from surgeon.errors import SurgeonError
from surgeon.recipe import dump_recipe, parse
from surgeon.recipe.document import plain
from surgeon.recipe.yaml_text import read_documents
from surgeon.space import expr as space
from surgeon.space.coefficient import Coefficient, ScheduleProduct
from surgeon.space.output import Output, Recipe
from surgeon.space.parts import PartNumber, TokenSources
from surgeon.space.registry import edits, fitters, merge_methods, reshapes
from surgeon.space.schedule import Layers, Rule, Rules

slowly = settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

fractions = st.one_of(
    st.fractions(-5, 5, max_denominator=40),
    st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: Fraction(repr(x))),
)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
names = st.one_of(
    st.just(""), st.sampled_from(["a", "base", "merged", "s", "true", "null", "result", "m 1", "7b"]), words
)
hub_ids = st.tuples(
    st.sampled_from(["org/a", "org/b", "gpt2", "x.y/z-1"]), st.sampled_from(["", "@main", "@refs/pr/1"])
)
paths = words.filter(lambda w: "/" not in w and w not in (".", "..")).map(lambda w: f"/models/{w}")
refs = st.one_of(hub_ids.map("".join), paths)
targets = st.one_of(st.none(), st.sampled_from(["*mlp*", "re:layers\\.[0-9]+\\.", "a b", "*: #x", "[[]*", '"', "\\"]))


def scalars(parameter=None):
    if parameter is None or parameter.type is float:
        if parameter is not None and parameter.range:
            return st.fractions(Fraction(1, 50), 1, max_denominator=50)
        return fractions
    if parameter.type is bool:
        return st.booleans()
    if parameter.choices:
        return st.sampled_from(parameter.choices)
    return st.integers(0, 9).map(Fraction) if parameter.type is int else words


def varying(parameter=None):
    """A list over the layers, or rules."""
    layers = st.builds(Layers, st.lists(scalars(parameter), min_size=1, max_size=4).map(tuple), names)
    value = st.one_of(scalars(parameter), layers.map(lambda each: Layers(each.values)))
    some = st.lists(st.builds(Rule, targets.filter(bool), value), min_size=1, max_size=2)
    last = st.lists(st.builds(Rule, st.none(), value), max_size=1)
    return st.one_of(layers, st.builds(lambda a, b, n: Rules((*a, *b), n), some, last, names))


def artifacts(parameter):
    """A file, or what is measured on the neutral text or on a file's prompts."""
    if not parameter.per_tensor:
        return paths
    fits = st.builds(space.DataFit, st.just(parameter.type.kind), st.one_of(st.just(""), paths))
    return st.one_of(paths, fits)


def settings_of(method, *, per_model):
    options = {
        p.name: artifacts(p) if issubclass(p.type, Artifact) else st.one_of(scalars(p), varying(p))
        for p in method.parameters.values()
        if p.per_model or not per_model
    }
    required = {n: s for n, s in options.items() if method.parameters[n].required}
    optional = {n: s for n, s in options.items() if n not in required}
    return st.fixed_dictionaries(required, optional=optional).map(space.settings)


def merges(inner):
    def one(method):
        least, most = method.models
        members = st.builds(space.Member, inner, settings_of(method, per_model=True))
        base = inner if method.needs_base else st.one_of(st.none(), inner) if method.takes_base else st.none()
        shared = settings_of(method, per_model=False)
        several = st.lists(members, min_size=least, max_size=min(most or 3, 3)).map(tuple)
        return st.builds(
            space.Merge, st.just(method.name), several, base, shared, st.sampled_from(["paper", "mergekit"]), names
        )

    return st.sampled_from(list(merge_methods().values())).flatmap(one)


def combinations(inner):
    plain = fractions.map(Coefficient.of)
    scheduled = st.tuples(plain, varying(), plain).map(lambda t: t[0] + Coefficient.of(t[1]) * t[2])
    return st.lists(st.tuples(inner, st.one_of(plain, scheduled)), max_size=4).map(_combined)


def _combined(terms):
    """The combination; without the schedules where one would be multiplied by another."""
    try:
        return space.combination(terms)
    except ScheduleProduct:
        return space.combination((term, Coefficient.of(factor.constant)) for term, factor in terms)


def adapters(inner):
    return st.builds(space.Model, refs, inner, st.just(False), names)


points = st.sampled_from(["embed", "block.0", "block.14", "block.7.mid", "own", "own.mid"])
files = words.filter(lambda w: "/" not in w and w not in (".", "..")).map(lambda w: f"/data/{w}")


def fits(inner):
    def one(fitter):
        known = {p.name: p for p in fitter.parameters.values()}
        positions = st.sampled_from(["last", "response", "mean", "first:3"])
        special = {"position": positions, "neutral": files}
        options = {name: special[name] if name in special else scalars(p) for name, p in known.items()}
        required = {name: options.pop(name) for name, p in known.items() if p.required}
        chosen = st.fixed_dictionaries(required, optional=options).map(space.settings)
        return st.builds(space.Fit, st.just(fitter.name), inner, files, files, points, chosen, names)

    return st.sampled_from(list(fitters().values())).flatmap(one)


def uses(inner):
    stored = st.builds(space.DirectionRef, files, st.one_of(st.just(""), points), names)
    return st.one_of(stored, st.builds(space.DirectionRef, fits(inner), st.just(""), names))


def edits_of(inner):
    def one(method):
        many = st.lists(uses(inner), min_size=1, max_size=2).map(tuple)
        return st.builds(
            space.Edit,
            st.just(method.name),
            inner,
            many if method.needs_directions else st.just(()),
            settings_of(method, per_model=False),
            st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(10, 99))),
            st.lists(st.sampled_from(["attention", "mlp", "embed"]), unique=True).map(tuple),
            st.sampled_from(["untie", "both", "skip"]),
            st.booleans(),
            names,
        )

    return st.sampled_from(list(edits().values())).flatmap(one)


def tokens_of(parts):
    """Sources of tokens, from models by the number of the first part that is the same."""
    numbers = st.sampled_from([[part.of for part in parts].index(part.of) for part in parts])
    tokens = st.text(st.characters(codec="utf-8"), max_size=6)
    other = st.one_of(st.none(), tokens, st.integers(0, 10**6))
    sources = st.one_of(
        st.builds(TokenSource, tokens, numbers, other, st.booleans()),
        st.builds(TokenSource, tokens, force=st.booleans()),
    )
    listed = st.lists(sources, max_size=3, unique_by=lambda source: source.token)
    options = {
        "tokenizer": st.one_of(st.just("union"), st.builds(PartNumber, numbers)),
        "tokens": listed.map(lambda found: TokenSources(tuple(sorted(found, key=lambda one: one.token)))),
        "missing": st.sampled_from(["base", "mean"]),
        "pad_to_multiple_of": st.integers(1, 512).map(Fraction),
    }
    return st.fixed_dictionaries({}, optional=options).map(space.settings)


def reshaped(inner):
    def one(reshaping):
        layers = st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(10, 99)))
        several = "parts" in reshaping.operands
        patterns = st.one_of(st.none(), targets.filter(bool))
        part = st.builds(space.Part, inner, layers if several else st.none(), patterns if several else st.none())
        parts = st.lists(part, min_size=1, max_size=1 if reshaping.operands == ("of",) else 3).map(tuple)
        if reshaping.name == "vocab":
            built = st.builds(space.Reshape, st.just("vocab"), parts, name=names)
            return built.flatmap(lambda made: tokens_of(made.parts).map(lambda given: replace(made, settings=given)))
        options = {name: scalars(p) for name, p in reshaping.parameters.items() if p.required}
        chosen = st.fixed_dictionaries(options).map(space.settings)
        return st.builds(space.Reshape, st.just(reshaping.name), parts, chosen, names)

    return st.sampled_from(list(reshapes().values())).flatmap(one)


leaves = st.builds(space.Model, refs, st.none(), st.just(False), names)
expressions = st.recursive(
    leaves,
    lambda inner: st.one_of(combinations(inner), merges(inner), adapters(inner), edits_of(inner), reshaped(inner)),
    max_leaves=7,
)
outputs = st.builds(
    Output,
    dtype=st.sampled_from([None, "F16", "BF16", "F32", "F64"]),
    shard_size=st.one_of(st.none(), st.integers(1, 10**12)),
    files_from=st.one_of(st.none(), expressions),
    rounding=st.sampled_from(["nearest", "compensated"]),
    drop=st.lists(targets.filter(bool), max_size=2).map(tuple),
    chat_template=st.sampled_from([None, "auto", "chatml", "{{ own }}\n"]),
)


def read_back(recipe):
    return parse(dump_recipe(recipe), file="dumped", folder=Path("/elsewhere")).recipe


@slowly
@given(expressions, outputs)
@example(space.Combination(()), Output())
@example(space.Model("org/a") * (Fraction(-1, 3) + Fraction("2.2144511971277478e-302")), Output())
@example(space.Combination(()), Output(files_from=space.Model("org/a", space.Combination(()))))
@example(space.Model("org/a"), Output(files_from=space.Model("org/a")))
def test_every_expression_reads_back_equal(expr, output):
    assert read_back(Recipe(expr, output)) == Recipe(expr, output)


def test_a_point_twice_in_a_merge_and_as_its_base_reads_back_equal():
    a, b = space.Model("org/a"), space.Model("org/b")
    inner = space.Merge("linear", (space.Member(a), space.Member(a)), settings=space.settings({"weight": Fraction(1)}))
    outer = space.Merge("task_arithmetic", (space.Member(inner), space.Member(inner), space.Member(b)), inner)
    assert read_back(Recipe(outer)) == Recipe(outer)


def test_a_direction_twice_in_an_edit_and_again_in_another_reads_back_equal():
    base = space.Model("org/a")
    stored, fit = space.DirectionRef("/data/d"), space.DirectionRef(space.Fit("mean_difference", base, "/p", "/n"))
    inner = space.Edit("ablate", base, (stored, fit, stored))
    outer = space.Edit("ablate", inner, (fit, stored), layers=(0, 4))
    assert read_back(Recipe(outer)) == Recipe(outer)


def test_a_dump_is_stable_and_names_its_schema(texts):
    for text in texts:
        once = dump_recipe(parse(text, file="r", folder=Path("/home/recipes")).recipe)
        assert dump_recipe(parse(once, file="r", folder=Path("/")).recipe) == once
        assert once.startswith("# yaml-language-server: $schema=recipe.schema.json\n")


def test_shared_parts_are_written_once():
    a, b = space.Model("org/a"), space.Model("org/b")
    weight = space.settings({"weight": Fraction(1)})
    shared = space.Merge("linear", (space.Member(a), space.Member(b)), settings=weight)
    whole = space.Merge("task_arithmetic", (space.Member(shared + b * 2),), shared)
    assert dump_recipe(Recipe(whole)).count("merge: linear") == 1


def quiet(text, **overrides):
    try:
        parse(text, file="fuzz", folder=Path("/x"), overrides=overrides)
    except SurgeonError as error:
        assert str(error)


@slowly
@given(st.text())
@example("a: \x85b")
@example("? ")
@example("- - - -")
def test_random_text_is_refused_properly(text):
    quiet(text)


_yaml = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(string.printable, max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abmodelstp_", max_size=7), inner, max_size=3)
    ),
    max_leaves=8,
)

MERGEKIT = """\
merge_method: ties
base_model: o/a
models:
- model: o/a
- model: o/b+o/lora
  parameters: {weight: [{filter: mlp, value: [0, 0.5]}, {value: 1}], density: 0.5}
parameters: {normalize: true, lambda: 0.5, int8_mask: true}
dtype: float32
"""


def _pieces(text):
    return re.findall(r"\w+|\s+|.", text)


@slowly
@given(st.data())
def test_mutations_of_valid_recipes_are_refused_properly(texts, data):
    pieces = _pieces(data.draw(st.sampled_from([MERGEKIT, *texts])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(pieces) - 1))
        other = data.draw(
            st.one_of(st.sampled_from(pieces), st.text(max_size=3), st.sampled_from([*"{}[]:,-#&*!|>'\"%@`"]))
        )
        pieces[at : at + data.draw(st.integers(0, 2))] = [other]
    quiet("".join(pieces))


@slowly
@given(st.data())
def test_anything_in_any_place_is_refused_properly(texts, data):
    """A valid recipe with one of its parts replaced by other data."""
    tree = plain(read_documents(data.draw(st.sampled_from([MERGEKIT, *texts])), "r")[0])
    here, place = {"": tree}, ""
    while isinstance(here[place], dict | list) and here[place] and data.draw(st.booleans()):
        here = here[place]
        place = data.draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
    here[place] = data.draw(_yaml)
    whole = tree if place else here[place]
    quiet(json.dumps(whole, default=float))


@slowly
@given(st.text(string.ascii_lowercase + "._0123456789", max_size=12), st.text(max_size=8))
def test_random_overrides_are_refused_properly(texts, key, value):
    for text in texts:
        quiet(text, **{key: value, f"steps.merged.{key}": value, f"models.{key}": value})
    quiet(texts[1], **{f"directions.{key}": value, f"steps.edited.{key}": value})


def test_an_expression_alone_is_dumped_as_a_recipe_of_it():
    whole = space.Model("org/a") + Fraction(1, 2) * (space.Model("org/b") - space.Model("org/a"))
    assert read_back(Recipe(whole)) == parse(dump_recipe(whole), file="dumped", folder=Path("/")).recipe
