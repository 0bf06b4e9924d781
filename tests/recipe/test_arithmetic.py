"""The arithmetic of `combine:`: a parser of six signs, and nothing that is evaluated."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.recipe.arithmetic import ArithmeticFault, evaluate
from surgeon.space.coefficient import Coefficient
from surgeon.space.expr import Combination, Model
from surgeon.space.schedule import Layers

A, B, C = Model("o/a"), Model("o/b"), Model("o/c")
S, T = Layers((Fraction(0), Fraction(1))), Layers((Fraction(1), Fraction(3)))
KNOWN = {"a": A, "b": B, "c": C, "s": Coefficient.of(S), "t": Coefficient.of(T)}


def value(text):
    return evaluate(text, KNOWN)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", A),
        ("((a))", A),
        ("a + 2*(b - c) - b", A + B - C * 2),
        ("0.1*a + 0.2*a - 0.3*a + b", B),
        ("a/3", A * Fraction(1, 3)),
        ("1/3*a", A * Fraction(1, 3)),
        ("a*2/4", A * Fraction(1, 2)),
        ("-a + b", -A + B),
        ("- -a", A),
        ("+a", A),
        ("2*-a", A * -2),
        ("1e-2*a", A * Fraction(1, 100)),
        ("(1 - s)*a + s*b", A * (Coefficient.of(1) + -Coefficient.of(S)) + B * S),
        ("a*(2*s + t)/4", A * ((Coefficient.of(S) * Coefficient.of(2) + Coefficient.of(T)) * Coefficient.of("0.25"))),
        ("s*a - s*a + b", B),
        ("a - a", Combination(())),
        ("0", Combination(())),
        ("a + 0", A),
        ("a\n  + b", A + B),
    ],
)
def test_values(text, expected):
    assert value(text) == expected


def test_terms_keep_the_order_written():
    assert [term for term, _ in value("b + a - 2*c").terms] == [B, A, C]


@pytest.mark.parametrize(
    ("text", "at", "message"),
    [
        ("a.ref", 1, "attributes"),
        ("a + f(b)", 5, "'f' is called"),
        ("f()", 1, "called"),
        ("2(a)", 1, "operator is missing"),
        ("a**2", 1, "powers"),
        ("a^2", 1, "powers"),
        ("'a'", 0, "texts"),
        ("a[0]", 1, "brackets"),
        ("a % b", 2, "'%'"),
        ("a // b", 3, "missing here"),
        ("a b", 2, "operator is missing before 'b'"),
        ("a +", 3, "missing here"),
        ("", 0, "missing here"),
        ("(a", 0, "never closed"),
        ("a)", 1, "before ')'"),
        ("a + x", 4, "nothing is called 'x'"),
        ("a*b", 1, "model is multiplied by a model"),
        ("1/a", 1, "divided by a model"),
        ("a/s", 1, "divided by a schedule"),
        ("a/0", 1, "divided by zero"),
        ("a/(1-1)", 1, "divided by zero"),
        ("s*t*a", 1, "schedule is multiplied"),
        ("a + 1", 2, "number and a model"),
        ("1 + 1", 0, "is a number"),
        ("s", 0, "is a schedule"),
        ("a + é", 4, "'é'"),
        ("1e300*1e300*a", 0, "out of range"),
        ("a + 1e999*b", 4, "out of range"),
        ("a" + "/1e300" * 40, 25, "out of range"),
        ("lambda: 1", 6, "':'"),
        ("__import__('os')", 11, "texts"),
    ],
)
def test_faults_point_at_the_character(text, at, message):
    with pytest.raises(ArithmeticFault, match=message.replace("(", r"\(").replace(")", r"\)")) as fault:
        value(text)
    assert fault.value.at == at


@pytest.mark.parametrize("text", ["(" * 5000 + "a" + ")" * 5000, "-" * 5000 + "a", "a" * 30_000])
def test_depth_and_length_are_bounded(text):
    with pytest.raises(ArithmeticFault, match=r"nested|at most"):
        value(text)


def test_a_long_sum_is_no_deep_one():
    assert value("+".join(["a", "b"] * 2000)) == A * 2000 + B * 2000


def trees():
    leaves = st.sampled_from(["a", "b", "c"])
    numbers = st.sampled_from(["2", "0.1", "3/7", "1e-3", "-1.5"])
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from("+-"), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
            st.tuples(numbers, inner).map(lambda p: f"({p[0]}*{p[1]})"),
            st.tuples(inner, numbers).map(lambda p: f"({p[0]}*({p[1]}))"),
            inner.map(lambda text: f"(-{text})"),
        ),
        max_leaves=12,
    )


def exactly(text):
    """The same expression by Python's own parser, on exact numbers: a vector in the basis a, b, c."""

    class Vector(tuple):
        def __add__(self, other):
            return Vector(x + y for x, y in zip(self, other, strict=True))

        def __neg__(self):
            return Vector(-x for x in self)

        def __sub__(self, other):
            return self + -other

        def __mul__(self, number):
            return Vector(x * number for x in self)

        __rmul__ = __mul__

    def numbers(word):
        return f"F({word!r})" if word[0].isdigit() else word

    import re

    code = re.sub(r"\d+(?:\.\d+)?(?:e-?\d+)?|[abc]", lambda found: numbers(found[0]), text)
    basis = {name: Vector(Fraction(int(name == other)) for other in "abc") for name in "abc"}
    return eval(code, {"F": Fraction, **basis})


@given(trees())
def test_agrees_with_pythons_own_arithmetic(text):
    found = value(text)
    terms = found.terms if isinstance(found, Combination) else ((found, Coefficient.of(1)),)
    ours = {term.ref[-1]: coefficient.constant for term, coefficient in terms}
    theirs = {name: x for name, x in zip("abc", exactly(text), strict=True) if x}
    assert ours == theirs
