"""The YAML that is read: plain data with places, and nothing clever."""

from fractions import Fraction

import pytest

from surgeon.errors import Origin, RecipeError
from surgeon.recipe.document import plain
from surgeon.recipe.yaml_text import LARGEST, read_documents


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-7", -7), ("0.1", Fraction(1, 10)), ("1e-5", Fraction(1, 100_000)), ("1E3", Fraction(1000)),
        (".5", Fraction(1, 2)), ("2.", Fraction(2)), ("+3", 3), ("true", True), ("False", False), ("yes", "yes"),
        ("null", None), ("~", None), ("", None), ("'1'", "1"), ('"true"', "true"), ("0x10", "0x10"), (".nan", ".nan"),
        (".inf", ".inf"), ("1_000", "1_000"), ("8..24", "8..24"), ("a b", "a b"), ("2020-01-01", "2020-01-01"),
    ],
)  # fmt: skip
def test_scalars(text, value):
    found = read_documents(f"x: {text}", "f")[0].mapping["x"].value
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("x: !!python/object:os.system y", 1, 4, "tags"),
        ("x: !custom [1]", 1, 4, "tags"),
        ("! x", 1, 1, "tags"),
        ("x: &a [1]\ny: *a", 1, 4, "anchors"),
        ("x: *a", 1, 4, "anchors"),
        ("x: 1\n<<: {y: 2}", 2, 1, "merge keys"),
        ("x: 1\ny: 2\nx: 3", 3, 1, "given twice; first at f:1"),
        ("1: x", 1, 1, "a key must be a word"),
        ("true: x", 1, 1, "a key must be a word"),
        ("? [a]\n: x", 1, 3, "a key must be a word"),
        ("%YAML 1.1\n---\nx: 1", 2, 1, "directives"),
        ("layers: 8:24", 1, 9, "8..24"),
        ("x: 190:20:30", 1, 4, "base 60"),
        ("x: 1e9999999", 1, 4, "out of range"),
        ("x: " + "9" * 2000, 1, 4, "out of range"),
        ("x: [1, 2", 1, 9, "not YAML"),
        ("x: 'a", 1, 6, "not YAML"),
        ("\tx: 1", 1, 1, "not YAML"),
        ("x: y: z", 1, 5, "not YAML"),
        ("x: \x00", 1, 1, "not YAML"),
        ("[" * 30 + "]" * 30, 1, 26, "deeper"),
        ("[" * 100_000, 1, 26, "deeper"),
        ("x" * (LARGEST + 1), 1, 1, "at most"),
    ],
)
def test_what_is_not_plain_data_is_refused(text, line, column, message):
    with pytest.raises(RecipeError) as refused:
        read_documents(text, "f")[0]
    fault = refused.value.faults[0]
    assert message in fault.message
    assert (fault.origin.line, fault.origin.column) == (line, column)


def test_a_billion_laughs():
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    with pytest.raises(RecipeError, match="anchors"):
        read_documents("\n".join(lines), "f")[0]


def test_every_key_and_value_knows_its_place():
    root = read_documents("a: 1\nb:\n  - x\n  - {c: 'long text'}\n", "f")[0]
    assert plain(root) == {"a": 1, "b": ["x", {"c": "long text"}]}
    b = root.mapping["b"]
    assert (b.key, b.at) == (Origin("f", 2, 1), Origin("f", 3, 3))
    c = b.items[1].mapping["c"]
    assert (c.key, c.at, c.verbatim) == (Origin("f", 4, 6), Origin("f", 4, 10), True)


@pytest.mark.parametrize(
    ("text", "verbatim"), [("a + b", True), ("'a + b'", True), ('"a\\x20b"', False), (">\n a\n b", False)]
)
def test_columns_inside_a_text_are_told_only_where_they_can_be(text, verbatim):
    assert read_documents(f"x: {text}\n", "f")[0].mapping["x"].verbatim is verbatim
