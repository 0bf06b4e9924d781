"""Factors of changes: joined exactly, cut as Eckart and Young say, never worse than the limit."""

import pytest
import torch

from surgeon.ship.factors import Limit, factorised, joined


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TERMS = [(0.5, drawn(40, 3, seed=1), drawn(3, 30, seed=2)), (-2.0, drawn(40, 5, seed=3), drawn(5, 30, seed=4))]
DENSE = sum(c * b @ a for c, b, a in TERMS)


def test_joining_is_exact():
    found = joined(TERMS, Limit())
    assert found.rank == 8 and found.error == 0
    assert torch.allclose(found.b @ found.a, DENSE, atol=1e-12)
    assert found.norm == pytest.approx(float(DENSE.norm()))


@pytest.mark.parametrize("rank", [1, 4, 8, 50])
def test_a_cut_of_factors_is_the_best_of_its_rank(rank):
    found = joined(TERMS, Limit(rank=rank))
    values = torch.linalg.svdvals(DENSE)
    best = float(values[rank:].square().sum().sqrt() / DENSE.norm())
    assert found.rank == min(rank, 8)
    assert float((found.b @ found.a - DENSE).norm() / DENSE.norm()) == pytest.approx(best, abs=1e-9)
    assert found.error == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("budget", [0.01, 0.3, 0.8])
def test_an_error_budget_takes_the_least_rank_that_keeps_it(budget):
    dense = drawn(24, 36)
    for found in (factorised(dense, Limit(error=budget)), joined([(1.0, dense, torch.eye(36))], Limit(error=budget))):
        assert found.error <= budget
        assert float((found.b @ found.a - dense).norm() / dense.norm()) == pytest.approx(found.error, abs=1e-9)
        tail = torch.linalg.svdvals(dense)[found.rank - 1 :].norm() / dense.norm()
        assert float(tail) > budget


def test_a_wide_change_is_sketched_and_its_error_measured():
    dense = drawn(200, 6) @ drawn(6, 300, seed=1) + 1e-3 * drawn(200, 300, seed=2)
    found = factorised(dense, Limit(rank=6))
    best = float(torch.linalg.svdvals(dense)[6:].norm() / dense.norm())
    assert found.rank == 6
    assert best * (1 - 1e-9) <= found.error == pytest.approx(best, rel=1e-3)


def test_a_change_of_rank_k_in_float32_is_found_to_be_one():
    assert factorised(DENSE.float(), Limit(error=1e-5)).rank == 8
    assert factorised(torch.zeros(4, 5), Limit(rank=2)).rank == 0
