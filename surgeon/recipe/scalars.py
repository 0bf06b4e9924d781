"""What an unquoted YAML word means: null, a flag, an exact number, or text (YAML 1.2's core rules)."""

from __future__ import annotations

import re
from fractions import Fraction

NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_SEXAGESIMAL = re.compile(r"[-+]?\d+(:[0-5]?\d)+(\.\d*)?")
_FRACTION = re.compile(r"[-+]?\d+/\d+")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None, "true": True, "True": True, "TRUE": True,
          "false": False, "False": False, "FALSE": False}  # fmt: skip
_LONGEST, _LARGEST_EXPONENT, _LARGEST = 1500, 400, 10**300


def resolve(word: str) -> str | int | Fraction | bool | None:
    """The value of an unquoted word. ValueError for numbers that are too long, and for YAML 1.1's base 60."""
    if word in _WORDS:
        return _WORDS[word]
    if _SEXAGESIMAL.fullmatch(word):
        written = word.replace(":", "..")
        raise ValueError(f"{word} would be a number to base 60 in YAML 1.1; quote it, or write a range as {written}")
    value = number(word) if NUMBER.fullmatch(word) else word
    if not isinstance(value, str) and abs(value) > _LARGEST:
        raise ValueError(f"{word[:40]} is out of range")
    return value


def number(text: str) -> int | Fraction:
    """The exact number a decimal spells. ValueError when it is too long to be meant."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > _LONGEST or len(exponent) > 6 or abs(int(exponent or 0)) > _LARGEST_EXPONENT:
        raise ValueError(f"{text[:40]} is out of range")
    value = Fraction(text)
    return value.numerator if re.fullmatch(r"[-+]?\d+", text) else value


def fraction(text: str) -> Fraction | None:
    """The number that ``p/q`` spells, which is how numbers without a finite decimal are written; else None."""
    if not _FRACTION.fullmatch(text) or len(text) > _LONGEST or not int(text.partition("/")[2]):
        return None
    return Fraction(text)
