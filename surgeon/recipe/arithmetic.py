"""A recipe's arithmetic: numbers, names, `+ - * / ( )`, folded exactly while it is parsed; no code is ever run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

from surgeon.errors import nearest
from surgeon.recipe.scalars import NUMBER, number
from surgeon.space.coefficient import Coefficient, ScheduleProduct
from surgeon.space.expr import ONE, Combination, Expr, combination

LONGEST, DEEPEST = 20_000, 50
"""Bounds on an expression: characters, and nested brackets and signs."""

_TOKEN = re.compile(rf"(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<number>{NUMBER.pattern.removeprefix('[-+]?')})|\*\*|\S")
_STRANGE = {"'": "texts are", '"': "texts are", ".": "attributes are", "^": "powers are", "**": "powers are",
            "[": "brackets [] are"}  # fmt: skip
_OPERATORS = "+-*/()"
_BITS, _LARGEST = 4096, 1 << 1000

Sum = tuple[tuple[Expr, Coefficient], ...]
Value = Coefficient | Sum


class ArithmeticFault(Exception):
    """What is wrong with an expression, and at which character."""

    def __init__(self, message: str, at: int, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.at, self.hint = message, at, hint


class Token(NamedTuple):
    """A number, a name, an operator (its own kind) or the end, and the character it starts at."""

    kind: str
    text: str
    at: int


def names(text: str) -> tuple[Token, ...] | None:
    """The names an expression uses, in order; None where it holds what is no arithmetic, and so may mean anything."""
    tokens = list(_tokens(text[:LONGEST]))
    if any(token.kind == "strange" for token in tokens):
        return None
    pairs = itertools.pairwise(tokens)
    return tuple(token for token, after in pairs if token.kind == "name" and after.kind != "(")


def evaluate(text: str, known: Mapping[str, Expr | Coefficient]) -> Expr:
    """The expression with names replaced by what they stand for. ArithmeticFault where that makes no sense."""
    if len(text) > LONGEST:
        raise ArithmeticFault(f"an expression has at most {LONGEST} characters", 0)
    tokens = list(_tokens(text))
    for token in tokens:
        if token.kind == "strange":
            what = _STRANGE.get(token.text, f"{token.text!r} is")
            allowed = "numbers, names, + - * / and ( )"
            raise ArithmeticFault(f"{what} not part of a recipe's arithmetic ({allowed})", token.at)
    parser = _Parser(tokens, known)
    value = parser.sum(0)
    parser.end()
    return _point(value, tokens[0])


def _tokens(text: str) -> Iterator[Token]:
    for found in _TOKEN.finditer(text):
        kind = found.lastgroup or (found[0] if found[0] in _OPERATORS else "strange")
        yield Token(kind, found[0], found.start())
    yield Token("end", "", len(text))


class _Parser:
    """Recursive descent over tokens; each method gives the value of what it read."""

    def __init__(self, tokens: list[Token], known: Mapping[str, Expr | Coefficient]) -> None:
        self.tokens, self.known, self.next = tokens, known, 0

    def sum(self, depth: int) -> Value:
        """A sum of products."""
        value = self._product(depth)
        while token := self._accept("+", "-"):
            value = _sum(value, self._product(depth), token)
        return value

    def end(self) -> None:
        """Refuse what follows a whole expression."""
        before, token = self.tokens[self.next - 1], self.tokens[self.next]
        if token.kind == "(":
            what = f"{before.text!r} is called" if before.kind == "name" else "an operator is missing here"
            raise ArithmeticFault(f"{what}; calls are not part of a recipe's arithmetic", token.at)
        if token.kind != "end":
            raise ArithmeticFault(f"an operator is missing before {token.text!r}", token.at)

    def _accept(self, *kinds: str) -> Token | None:
        token = self.tokens[self.next]
        if token.kind not in kinds:
            return None
        self.next += 1
        return token

    def _product(self, depth: int) -> Value:
        value = self._factor(depth)
        while token := self._accept("*", "/"):
            value = _product(value, self._factor(depth), token)
        return value

    def _factor(self, depth: int) -> Value:
        token = self.tokens[self.next]
        if depth > DEEPEST:
            raise ArithmeticFault(f"brackets and signs are nested deeper than {DEEPEST}", token.at)
        if not self._accept("number", "name", "+", "-", "("):
            raise ArithmeticFault("a number, a name or ( is missing here", token.at)
        if token.kind == "number":
            return _number(token)
        if token.kind == "name":
            return self._named(token)
        if token.kind == "(":
            return self._bracket(token, depth)
        value = self._factor(depth + 1)
        return _scaled(value, -ONE, token) if token.kind == "-" else value

    def _bracket(self, opened: Token, depth: int) -> Value:
        value = self.sum(depth + 1)
        if self.tokens[self.next].kind == "end":
            raise ArithmeticFault("this ( is never closed", opened.at)
        if not self._accept(")"):
            self.end()
        return value

    def _named(self, token: Token) -> Value:
        if self.tokens[self.next].kind == "(":
            self.end()
        if token.text not in self.known:
            raise ArithmeticFault(f"nothing is called {token.text!r}", token.at, nearest(token.text, self.known))
        value = self.known[token.text]
        if isinstance(value, Combination):
            return value.terms
        return value if isinstance(value, Coefficient) else ((value, ONE),)


def _number(token: Token) -> Coefficient:
    try:
        return Coefficient.of(number(token.text))
    except ValueError as error:
        raise ArithmeticFault(str(error), token.at) from None


def _sum(left: Value, right: Value, token: Token) -> Value:
    right = _scaled(right, -ONE, token) if token.kind == "-" else right
    if isinstance(left, Coefficient) and isinstance(right, Coefficient):
        return _bounded(left + right, token)
    return _terms(left, token) + _terms(right, token)


def _terms(value: Value, token: Token) -> Sum:
    if not isinstance(value, Coefficient):
        return value
    if value.is_zero:
        return ()
    raise ArithmeticFault("a number and a model are added; write number * model", token.at)


def _product(left: Value, right: Value, token: Token) -> Value:
    if token.kind == "/":
        return _scaled(left, Coefficient(1 / _divisor(right, token)), token)
    if isinstance(right, Coefficient):
        return _scaled(left, right, token)
    if isinstance(left, Coefficient):
        return _scaled(right, left, token)
    raise ArithmeticFault("a model is multiplied by a model; only numbers and schedules multiply", token.at)


def _divisor(value: Value, token: Token) -> Fraction:
    if isinstance(value, Coefficient) and not value.scheduled and value.constant:
        return value.constant
    if isinstance(value, Coefficient) and not value.scheduled:
        raise ArithmeticFault("divided by zero", token.at)
    what = "a schedule" if isinstance(value, Coefficient) else "a model"
    raise ArithmeticFault(f"divided by {what}; only numbers divide", token.at)


def _scaled(value: Value, factor: Coefficient, token: Token) -> Value:
    try:
        if isinstance(value, Coefficient):
            return _bounded(value * factor, token)
        return tuple((term, _bounded(coefficient * factor, token)) for term, coefficient in value)
    except ScheduleProduct as error:
        raise ArithmeticFault(str(error), token.at) from None


def _bounded(value: Coefficient, token: Token) -> Coefficient:
    """The coefficient itself; exact numbers grow with every step, and must not without end."""
    for factor in _numbers(value):
        if max(factor.numerator.bit_length(), factor.denominator.bit_length()) > _BITS:
            raise ArithmeticFault("this number is out of range", token.at)
    return value


def _numbers(value: Coefficient) -> Iterator[Fraction]:
    yield value.constant
    yield from (factor for _, factor in value.scheduled)


def _point(value: Value, first: Token) -> Expr:
    if isinstance(value, Coefficient) and not value.is_zero:
        what = "a schedule" if value.scheduled else "a number"
        raise ArithmeticFault(f"the result is {what}, not a model", first.at)
    terms = () if isinstance(value, Coefficient) else value
    if any(abs(factor) > _LARGEST for _, coefficient in terms for factor in _numbers(coefficient)):
        raise ArithmeticFault("a coefficient of the result is out of range", first.at)
    return combination(terms)
