"""Scopes worth trying, the order they are tried in, and the choice among them."""

from surgeon.anatomy.family import Part
from surgeon.tuning.find import COUNT, _promising
from surgeon.tuning.scope import Effect, Scope, Tried, choose, scopes, search

ONE = Scope((3, 4), ("attention",), "own")
TWO = Scope((2, 6), ("attention",), "own")


def effects(**nats: float) -> list[Effect]:
    return [
        Effect(int(name[1:]), Part.ATTENTION if name[0] == "a" else Part.MLP, value) for name, value in nats.items()
    ]


def tried(scope: Scope, strength: float, nats: float, kl: float, rate: float | None = None) -> Tried:
    return Tried(scope, strength, nats, kl, rate)


def test_runs_hold_the_writers_with_effect_and_begin_late_as_well():
    found = scopes(effects(a0=0.6, a5=0.1, a6=1.0, a8=0.3, m8=0.2, m9=-1.0), 12)
    attention = [scope.layers for scope in found if scope.writers == ("attention",)]
    assert attention == [(0, 7), (4, 7), (0, 9), (4, 9)]
    assert Scope((8, 9), ("mlp",), "own") in found
    assert Scope(None, (), "block.6") == found[-1]


def test_writers_without_effect_leave_only_the_direction_everywhere():
    assert scopes(effects(a0=-0.1, m0=0.0), 1) == (Scope(None, (), "block.0"),)


def test_strength_grows_while_the_cost_allows_and_shrinks_where_it_does_not():
    asked: list[tuple[Scope, float]] = []

    def measure(scope: Scope, strength: float) -> Tried:
        asked.append((scope, strength))
        return tried(scope, strength, strength, 0.02 * strength if scope == ONE else 0.2)

    search([ONE, TWO], measure, budget=0.05)
    assert asked == [(ONE, 1.0), (ONE, 1.5), (ONE, 2.0), (ONE, 3.0), (TWO, 1.0), (TWO, 0.75), (TWO, 0.5)]


def test_the_cheapest_that_leaves_nothing_is_chosen_within_the_budget():
    cheap, dear = tried(ONE, 2, 5, 0.002, 0.02), tried(TWO, 1, 9, 0.03, 0.0)
    beyond, weak = tried(TWO, 3, 20, 0.4, 0.0), tried(ONE, 1, 1, 0.001, 0.7)
    assert choose([dear, weak, beyond, cheap], before=0.9, budget=0.05) == cheap


def test_beyond_the_budget_only_where_nothing_within_it_works():
    within, beyond = tried(ONE, 1, 1, 0.01, 0.8), tried(TWO, 3, 20, 0.2, 0.0)
    assert choose([within, beyond], before=0.9, budget=0.05) == beyond
    assert choose([within, tried(TWO, 3, 20, 0.2, 0.7)], before=0.9, budget=0.05) == within


def test_cheaper_ones_that_lose_less_are_passed_over_but_removals_are_not():
    rows = [
        tried(ONE, 1, 1.0, 0.01), tried(ONE, 2, 5.0, 0.02), tried(TWO, 1, 3.0, 0.03), tried(TWO, 1.5, 4.0, 0.04),
        tried(TWO, 2, 9.0, 0.2),
    ]  # fmt: skip
    assert _promising(rows, 0.0, 0.05) == rows[:3]
    assert _promising(rows, 0.05, float("inf")) == rows[4:]
    many = [tried(ONE, float(at), float(at), 0.001 * at) for at in range(2, 60)]
    assert len(_promising(many, 0.0, 1.0)) == COUNT
