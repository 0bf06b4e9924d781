"""A recipe's arithmetic: numbers, names, `+ - * / ( )`. Parsed to postfix order, then folded; nothing is evaluated."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from surgeon.errors import nearest
from surgeon.recipe.scalars import NUMBER, number
from surgeon.space.coefficient import Coefficient, ScheduleProduct
from surgeon.space.expr import ONE, Combination, Expr, combination

LONGEST, DEEPEST = 20_000, 50
"""Bounds on an expression: characters, and nested brackets and signs."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATORS = "+-*/()"
_BITS, _LARGEST = 4096, 1 << 1000

Sum = tuple[tuple[Expr, Coefficient], ...]
Value = Coefficient | Sum


class ArithmeticFault(Exception):
    """What is wrong with an expression, and at which character."""

    def __init__(self, message: str, at: int, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.at, self.hint = message, at, hint


@dataclass(frozen=True)
class Token:
    """A number, a name, an operator or the end; in postfix order also ``negate``."""

    kind: str
    text: str
    at: int


Postfix = tuple[Token, ...]


def parse(text: str) -> Postfix:
    """The expression in postfix order. ArithmeticFault where it is not one."""
    if len(text) > LONGEST:
        raise ArithmeticFault(f"an expression has at most {LONGEST} characters", 0)
    parser = _Parser(tuple(_tokens(text)))
    parser.sum(0)
    parser.end()
    return tuple(parser.output)


def names(postfix: Postfix) -> tuple[Token, ...]:
    """The names an expression uses, in order."""
    return tuple(token for token in postfix if token.kind == "name")


def evaluate(postfix: Postfix, known: Mapping[str, Expr | Coefficient]) -> Expr:
    """The expression with names replaced by what they stand for. ArithmeticFault where that makes no sense."""
    stack: list[Value] = []
    for token in postfix:
        if token.kind == "number":
            stack.append(_number(token))
        elif token.kind == "name":
            stack.append(_named(token, known))
        elif token.kind == "negate":
            stack.append(_times(stack.pop(), -ONE, token))
        else:
            right, left = stack.pop(), stack.pop()
            stack.append(_binary(token, left, right))
    return _point(stack.pop(), postfix[0])


# -- reading ----------------------------------------------------------------------------------------------------------


def _tokens(text: str) -> Iterator[Token]:
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        found = _NAME.match(text, at) or (text[at] not in "+-" and NUMBER.match(text, at)) or None
        if found is not None:
            yield Token("name" if _NAME.match(text, at) else "number", found[0], at)
            at = found.end()
        elif text.startswith("**", at):
            raise ArithmeticFault("powers are not part of a recipe's arithmetic", at)
        elif text[at] in _OPERATORS:
            yield Token(text[at], text[at], at)
            at += 1
        else:
            raise ArithmeticFault(_strange(text[at]), at)
    yield Token("end", "", at)


def _strange(letter: str) -> str:
    known = {"'": "texts are", '"': "texts are", ".": "attributes are", "^": "powers are", "[": "brackets [] are"}
    return f"{known.get(letter, f'{letter!r} is')} not part of a recipe's arithmetic (numbers, names, + - * / and ( ))"


class _Parser:
    """Recursive descent over tokens; appends to `output` in postfix order."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self.tokens = tokens
        self.next = 0
        self.output: list[Token] = []

    def sum(self, depth: int) -> None:
        """A sum of products."""
        self._chain("+-", depth)

    def end(self) -> None:
        """Refuse what follows a whole expression."""
        token = self.tokens[self.next]
        if token.kind == "(":
            before = self.tokens[self.next - 1]
            what = f"{before.text!r} is called" if before.kind == "name" else "an operator is missing here"
            raise ArithmeticFault(f"{what}; calls are not part of a recipe's arithmetic", token.at)
        if token.kind != "end":
            raise ArithmeticFault(f"an operator is missing before {token.text!r}", token.at)

    def _chain(self, operators: str, depth: int) -> None:
        operand = self._product if operators == "+-" else self._factor
        operand(depth)
        while (token := self.tokens[self.next]).kind in operators:
            self.next += 1
            operand(depth)
            self.output.append(token)

    def _product(self, depth: int) -> None:
        self._chain("*/", depth)

    def _factor(self, depth: int) -> None:
        token = self.tokens[self.next]
        self.next += 1
        if depth > DEEPEST:
            raise ArithmeticFault(f"brackets and signs are nested deeper than {DEEPEST}", token.at)
        if token.kind in ("number", "name"):
            self.output.append(token)
        elif token.kind in ("+", "-"):
            self._factor(depth + 1)
            if token.kind == "-":
                self.output.append(Token("negate", "-", token.at))
        elif token.kind == "(":
            self.sum(depth + 1)
            self._close(token)
        else:
            raise ArithmeticFault("a number, a name or ( is missing here", token.at)

    def _close(self, opened: Token) -> None:
        token = self.tokens[self.next]
        if token.kind == "end":
            raise ArithmeticFault("this ( is never closed", opened.at)
        if token.kind != ")":
            self.end()
        self.next += 1


# -- folding ----------------------------------------------------------------------------------------------------------


def _number(token: Token) -> Coefficient:
    try:
        return Coefficient.of(number(token.text))
    except ValueError as error:
        raise ArithmeticFault(str(error), token.at) from None


def _named(token: Token, known: Mapping[str, Expr | Coefficient]) -> Value:
    if token.text not in known:
        raise ArithmeticFault(f"nothing is called {token.text!r}", token.at, nearest(token.text, known))
    value = known[token.text]
    if isinstance(value, Combination):
        return value.terms
    return value if isinstance(value, Coefficient) else ((value, ONE),)


def _binary(token: Token, left: Value, right: Value) -> Value:
    if token.kind == "/":
        return _times(left, Coefficient(1 / _divisor(right, token)), token)
    if token.kind == "*":
        if isinstance(right, Coefficient):
            return _times(left, right, token)
        if isinstance(left, Coefficient):
            return _times(right, left, token)
        raise ArithmeticFault("a model is multiplied by a model; only numbers and schedules multiply", token.at)
    right = _times(right, -ONE, token) if token.kind == "-" else right
    if isinstance(left, Coefficient) and isinstance(right, Coefficient):
        return _bounded(left + right, token)
    return _terms(left, token) + _terms(right, token)


def _times(value: Value, factor: Coefficient, token: Token) -> Value:
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


def _divisor(value: Value, token: Token) -> Fraction:
    if not isinstance(value, Coefficient):
        raise ArithmeticFault("divided by a model; only numbers divide", token.at)
    if value.scheduled:
        raise ArithmeticFault("divided by a schedule; only numbers divide", token.at)
    if not value.constant:
        raise ArithmeticFault("divided by zero", token.at)
    return value.constant


def _terms(value: Value, token: Token) -> Sum:
    if not isinstance(value, Coefficient):
        return value
    if value.is_zero:
        return ()
    raise ArithmeticFault("a number and a model are added; write number * model", token.at)


def _point(value: Value, first: Token) -> Expr:
    if isinstance(value, Coefficient) and not value.is_zero:
        what = "a schedule" if value.scheduled else "a number"
        raise ArithmeticFault(f"the result is {what}, not a model", first.at)
    terms = () if isinstance(value, Coefficient) else value
    if any(abs(factor) > _LARGEST for _, coefficient in terms for factor in _numbers(coefficient)):
        raise ArithmeticFault("a coefficient of the result is out of range", first.at)
    return combination(terms)
