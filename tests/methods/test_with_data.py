"""RegMean and Fisher on plain tensors: theorems and golden numbers."""

import pytest
import torch

from surgeon.methods.fisher import fisher
from surgeon.methods.regmean import regmean
from surgeon.methods.regmean_pp import regmean_pp
from surgeon.space.least_squares import shrunk

GENERATOR = torch.Generator().manual_seed(3)
VECTORS = torch.randn(3, 6, 8, generator=GENERATOR)
READ = torch.randn(3, 40, 8, generator=GENERATOR).double() * torch.linspace(0.1, 3, 8)
GRAMS = [x.T @ x / 40 for x in READ]
#: A ridge too small to matter, for what holds without one.
BARE = 1e-14


def objective(merged: torch.Tensor) -> float:
    """Σ ‖X (W − Wₜ)ᵀ‖², what RegMean makes least."""
    return sum(float((x @ (merged - v).double().T).square().sum()) for x, v in zip(READ, VECTORS, strict=True))


def test_equal_grams_give_the_mean():
    torch.testing.assert_close(regmean(VECTORS, gram=[GRAMS[0]] * 3), VECTORS.mean(0), rtol=1e-5, atol=1e-6)


def test_one_model_is_itself_whatever_the_ridge():
    torch.testing.assert_close(regmean(VECTORS[:1], gram=GRAMS[:1], ridge=0.5), VECTORS[0], rtol=1e-5, atol=1e-6)


def test_normal_equations_hold():
    wide = VECTORS.double()
    merged = regmean(wide, gram=GRAMS, ridge=BARE)
    right = torch.stack([v @ g for v, g in zip(wide, GRAMS, strict=True)]).sum(0)
    assert float((merged @ torch.stack(GRAMS).sum(0) - right).abs().max() / right.abs().max()) < 1e-13


def test_objective_is_below_that_of_the_mean_and_of_any_neighbour():
    merged = regmean(VECTORS.double(), gram=GRAMS, ridge=BARE)
    best = objective(merged)
    assert best < 0.95 * objective(VECTORS.mean(0))
    for _ in range(5):
        assert best < objective(merged + 1e-3 * torch.randn(merged.shape, generator=GENERATOR))


def test_golden_two_by_two():
    """Model 1 reads the first axis alone, model 2 both: worked out by hand, (G₁+G₂)⁻¹ = [[3, −1], [−1, 2]]/5."""
    vectors = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).double()
    grams = [torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 3.0]])]
    merged = regmean(vectors, gram=grams, ridge=BARE)
    torch.testing.assert_close(merged, torch.tensor([[0.6, 0.8]]).double())


def test_reduction_zero_averages_column_by_column():
    merged = regmean(VECTORS, gram=GRAMS, reduction=0.0, ridge=BARE)
    share = torch.stack([g.diagonal() for g in GRAMS])
    torch.testing.assert_close(merged, ((VECTORS * share[:, None]).sum(0) / share.sum(0)).float(), rtol=1e-5, atol=1e-6)


def test_the_guard_is_one_more_model_that_does_not_move():
    still = torch.cat([VECTORS, torch.zeros_like(VECTORS[:1])])
    expected = regmean(still, gram=[*GRAMS, GRAMS[0]], weight=(1, 1, 1, 2.5))
    torch.testing.assert_close(regmean(VECTORS, gram=GRAMS, base_gram=GRAMS[0], guard=2.5), expected)
    huge = regmean(VECTORS, gram=GRAMS, base_gram=GRAMS[0], guard=1e9)
    assert float(huge.abs().max()) < 1e-6
    torch.testing.assert_close(regmean(VECTORS, gram=GRAMS, base_gram=GRAMS[0], guard=0), regmean(VECTORS, gram=GRAMS))


def test_without_grams_the_weighted_mean():
    merged = regmean(VECTORS[:, 0], gram=[None] * 3, weight=(1, 0, 3))
    torch.testing.assert_close(merged, (VECTORS[0, 0] + 3 * VECTORS[2, 0]) / 4)


def test_a_layer_that_reads_zeros_takes_the_mean():
    torch.testing.assert_close(regmean(VECTORS, gram=[torch.zeros(8, 8)] * 3), VECTORS.mean(0), rtol=1e-5, atol=1e-6)


def test_weights_that_leave_nothing_and_grams_that_are_none_are_refused():
    with pytest.raises(ValueError, match="all weights are 0"):
        regmean(VECTORS, gram=GRAMS, weight=(0, 0, 0))
    with pytest.raises(ValueError, match="do not determine"):
        regmean(VECTORS, gram=[-torch.eye(8)] * 3)


def test_the_ridge_is_relative_and_leaves_the_gram_as_it_was():
    before = GRAMS[0].clone()
    raised = shrunk(GRAMS[0], 0.9, 0.1)
    assert torch.equal(GRAMS[0], before)
    torch.testing.assert_close(raised.diagonal(), 1.1 * before.diagonal(), rtol=1e-4, atol=0)
    torch.testing.assert_close(shrunk(7 * before, 0.9, 0.1), 7 * raised)


def test_fewer_tokens_than_features_are_no_obstacle():
    """Grams of 20 tokens and 300 features, rounded to float32, some features a thousand times others."""
    read = torch.randn(3, 20, 300, generator=GENERATOR) * torch.logspace(-3, 3, 300)
    vectors = torch.randn(3, 4, 300, generator=GENERATOR)
    merged = regmean(vectors, gram=[x.T @ x for x in read])
    for x, vector in zip(read, vectors, strict=True):
        wanted = x @ vector.T
        assert float((x @ merged.T - wanted).norm() / wanted.norm()) < 0.05


def test_regmean_pp_solves_the_same():
    settings = {"gram": GRAMS, "base_gram": GRAMS[1], "weight": (1.0, 0.5, 2.0), "reduction": 0.9}
    assert torch.equal(regmean_pp(VECTORS, **settings), regmean(VECTORS, **settings))


def test_equal_fishers_give_the_mean():
    own = torch.rand(6, 8, generator=GENERATOR) + 0.1
    torch.testing.assert_close(fisher(VECTORS, fisher=[own] * 3), VECTORS.mean(0), rtol=1e-5, atol=1e-6)


def test_a_fisher_without_bounds_gives_that_model():
    own = torch.rand(6, 8, generator=GENERATOR)
    torch.testing.assert_close(fisher(VECTORS, fisher=[own, own * 1e20, own]), VECTORS[1])


def test_entries_that_matter_to_one_model_alone_are_that_models():
    own = [torch.zeros(6, 8) for _ in range(3)]
    own[0][:3], own[2][3:5] = 1.0, 0.2
    merged = fisher(VECTORS, fisher=own)
    torch.testing.assert_close(merged[:3], VECTORS[0, :3])
    torch.testing.assert_close(merged[3:5], VECTORS[2, 3:5])
    torch.testing.assert_close(merged[5], VECTORS[:, 5].mean(0))


def test_the_fisher_guard_pulls_to_the_base():
    own = torch.ones(6, 8)
    merged = fisher(VECTORS, fisher=[own] * 3, base_fisher=own, guard=3.0)
    torch.testing.assert_close(merged, VECTORS.sum(0) / 6)
