"""Model Stock: the paper's ratio, its bounds, rows, and that turning the models turns the result."""

import math

import pytest
import torch

from surgeon.methods.model_stock import model_stock


def at_cosine(cosine, count=2):
    """Unit vectors, every two of which meet at this cosine: a square root of their Gram matrix."""
    table = torch.full((count, count), cosine, dtype=torch.float64).fill_diagonal_(1.0)
    values, vectors = torch.linalg.eigh(table)
    return vectors * values.clamp_min(0).sqrt()


def ratio(vectors, **settings):
    merged, mean = model_stock(vectors, **settings), vectors.mean(0)
    return float((merged * mean).sum() / (mean * mean).sum())


@pytest.mark.parametrize(
    ("count", "cosine", "t"), [(2, 0.0, 0.0), (2, 0.5, 2 / 3), (2, 1.0, 1.0), (4, 0.5, 0.8), (3, 0.2, 0.6 / 1.4)]
)
def test_golden_ratios(count, cosine, t):
    assert ratio(at_cosine(cosine, count)) == pytest.approx(t, abs=1e-9)


def test_away_from_each_other_the_base_is_left_unless_unclamped():
    vectors = at_cosine(-0.3, 4)
    assert not model_stock(vectors).any()
    assert ratio(vectors, clamp=False) == pytest.approx(-12)


def test_short_task_vectors_count_as_much_as_long_ones():
    vectors = at_cosine(0.5) * 1e-5
    assert ratio(vectors) == pytest.approx(2 / 3)
    assert ratio(vectors, floor=1e-6) < 1e-3


def test_rows_have_ratios_of_their_own():
    vectors = torch.stack([at_cosine(c).float() for c in (0.0, 0.5, 1.0)], dim=1)
    merged = model_stock(vectors, filter_wise=True)
    for row, t in enumerate((0.0, 2 / 3, 1.0)):
        torch.testing.assert_close(merged[row], t * vectors.mean(0)[row], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(merged, model_stock(vectors))


def test_a_vector_is_one_row():
    vectors = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) + 1
    torch.testing.assert_close(model_stock(vectors, filter_wise=True), model_stock(vectors))


def test_turning_the_models_turns_the_result():
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(3, 6, 9, generator=generator, dtype=torch.float64) + 0.5
    left = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64)).Q
    torch.testing.assert_close(model_stock(left @ vectors @ right), left @ model_stock(vectors) @ right)
    rows = model_stock(vectors @ right, filter_wise=True)
    torch.testing.assert_close(rows, model_stock(vectors, filter_wise=True) @ right)


def test_it_is_the_point_of_the_plane_nearest_the_centre_that_the_angles_tell():
    """The paper's derivation: with equal lengths l, |t·mean|² = t·l²·cos, where base and mean meet at a right angle."""
    vectors = at_cosine(0.5, 4)
    t = ratio(vectors)
    assert math.isclose(float((t * vectors.mean(0)).norm()) ** 2, t * 0.5, rel_tol=1e-9)
