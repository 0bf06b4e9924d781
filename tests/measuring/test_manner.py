"""Telling a manner by answers or by a rule, and how sure a count makes one."""

import pytest

from surgeon.errors import RefusedError
from surgeon.measuring.manner import Answer, Rate, by_answers, by_rule


def answers(*rows: tuple[int, ...]) -> list[Answer]:
    return [Answer(row, " ".join(map(str, row))) for row in rows]


def test_answers_are_told_apart_by_tokens_that_only_one_set_has():
    manner = by_answers(answers((7, 1, 2), (7, 3), (7, 1, 4)), answers((8, 1, 2), (9, 3), (8, 4)))
    assert [manner.shows(one) for one in answers((7, 2), (8, 2), (7, 9), (5, 6))][:2] == [True, False]
    assert manner.rate(answers((7, 1), (7, 2), (8, 1), (9, 2))).value == 0.5


def test_how_often_a_token_stands_in_an_answer_does_not_matter():
    manner = by_answers(answers((7, 7, 7, 7), (7,)), answers((8,), (8, 8)))
    assert manner.score(answers((7,))[0]) == manner.score(answers((7, 7, 7))[0])


def test_a_rule_is_looked_for_in_the_text():
    manner = by_rule(r"^1 \d$")
    assert [manner.shows(one) for one in answers((1, 2), (2, 1), (1, 2, 3))] == [True, False, False]
    with pytest.raises(RefusedError, match="not a regular expression"):
        by_rule("(")
    with pytest.raises(RefusedError, match="fits every answer"):
        by_rule("")


def test_the_interval_is_wilsons():
    low, high = Rate(39, 40).interval
    assert (round(low, 4), round(high, 4)) == (0.8712, 0.9956)
    assert Rate(0, 40).interval[0] == 0.0
    assert Rate(0, 0).value == 0.0
