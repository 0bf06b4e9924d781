"""AUROC is a count of pairs; controls know nothing of the labels; drift is a table of cosines."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.artifacts.direction import bank
from surgeon.directions.separation import auroc, drift, separations, shuffled_rows
from surgeon.space.fitter import Moments

SCORES = st.lists(st.integers(-4, 4), min_size=1, max_size=12)


def counted(positive, negative):
    wins = sum((left > right) + (left == right) / 2 for left in positive for right in negative)
    return wins / (len(positive) * len(negative))


@given(SCORES, SCORES)
@settings(max_examples=200, deadline=None)
def test_auroc_counts_pairs(positive, negative):
    found = auroc(torch.tensor(positive, dtype=torch.float32), torch.tensor(negative, dtype=torch.float32))
    assert found == pytest.approx(counted(positive, negative), abs=1e-12)


def sets(shift, n=64, d=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(n, d, generator=generator) for _ in range(2)]
    drawn[0][:, 0] += shift
    return drawn


def folds(states):
    return tuple({"embed": Moments.of(states[start::4])} for start in range(4))


def difference(point, positive, negative):
    return positive.mean - negative.mean


def test_a_direction_separates_and_its_controls_do_not():
    train, held = sets(6.0), sets(6.0, seed=1)
    rows = train[0].mean(0) - train[1].mean(0)
    controls = shuffled_rows(*map(folds, train), difference, draws=8)
    (found,) = separations({"embed": rows}, {"embed": held[0]}, {"embed": held[1]}, controls)
    assert found.auroc > 0.99
    assert len(found.shuffled) == 8
    assert sum(found.shuffled) / 8 < 0.95
    assert sum(found.random) / len(found.random) < 0.95
    assert min(*found.shuffled, *found.random) >= 0.5
    (flipped,) = separations({"embed": -rows}, {"embed": held[0]}, {"embed": held[1]})
    assert flipped.auroc == pytest.approx(1 - found.auroc)


def test_nothing_of_the_true_difference_is_left_when_labels_are_exchanged():
    """Sets without noise: exchanged labels leave no difference at all, also where the folds differ in size."""
    still = [torch.ones(7, 3), torch.zeros(9, 3)]
    for rows in shuffled_rows(*map(folds, still), difference):
        assert rows["embed"].abs().max() < 1e-15


def test_sets_of_one_fold_have_no_control():
    assert shuffled_rows(folds(torch.ones(4, 3))[:1], folds(torch.zeros(4, 3)), difference) == ()


def test_without_a_difference_nothing_separates():
    train, held = sets(0.0), sets(0.0, seed=1)
    rows = train[0].mean(0) - train[1].mean(0)
    (found,) = separations({"embed": rows}, {"embed": held[0]}, {"embed": held[1]})
    assert 0.3 < found.auroc < 0.7


def test_drift_of_directions():
    rows = torch.randn(3, 5)
    table = drift(bank({f"block.{at}": row for at, row in enumerate(rows)}))
    expected = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=2)
    torch.testing.assert_close(table.float(), expected)


def test_drift_of_subspaces_looks_at_spans():
    plane = torch.randn(2, 6)
    turned = torch.tensor([[1.0, 2.0], [-1.0, 3.0]]) @ plane
    across = torch.linalg.qr(torch.cat([plane, torch.randn(2, 6)]).T)[0].T[2:]
    table = drift(bank({"block.0": plane, "block.1": turned, "block.2": across}))
    torch.testing.assert_close(table[0, 1], torch.tensor(1.0, dtype=torch.float64), rtol=1e-6, atol=0)
    assert table[0, 2] < 1e-6
