"""The guard: its basis is the sink and the top components, and nothing of it stays in a row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.directions.guard import guard, guard_basis
from surgeon.errors import RefusedError


def made(width=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(400, width, generator=generator, dtype=torch.float64)
    states *= torch.linspace(5, 0.1, width, dtype=torch.float64)
    sink = torch.randn(width, generator=generator, dtype=torch.float64)
    first = {"embed": torch.randn(width, generator=generator), "block.0": 900 * sink, "block.1": 1000 * sink}
    return first, states.T @ states, sink


@given(seed=st.integers(0, 50), k=st.integers(1, 3), components=st.integers(0, 16))
@settings(max_examples=30, deadline=None)
def test_rows_are_orthogonal_to_the_basis(seed, k, components):
    first, products, _ = made(seed=seed)
    basis = guard_basis(first, products, components).basis
    rows = torch.randn(k, 40, generator=torch.Generator().manual_seed(seed))
    left, removed = guard(rows, basis)
    assert len(basis) == 1 + components
    torch.testing.assert_close(basis @ basis.T, torch.eye(1 + components, dtype=torch.float64))
    assert (left @ basis.T).abs().max() < 1e-15
    torch.testing.assert_close(left.square().sum(1), torch.ones(k, dtype=torch.float64))
    assert removed == pytest.approx(((rows.double() @ basis.T).square().sum() / rows.double().square().sum()).item())


def test_the_sink_is_where_first_tokens_are_huge():
    first, products, sink = made()
    found = guard_basis(first, products, 0).basis[0]
    assert abs(torch.nn.functional.cosine_similarity(found, sink, dim=0)) > 0.9999


def test_components_are_the_largest_besides_the_sink():
    first, products, sink = made()
    found = guard_basis(first, products, 4)
    unit = sink / sink.norm()
    rest = torch.eye(40, dtype=torch.float64) - torch.outer(unit, unit)
    vectors = torch.linalg.eigh(rest @ products @ rest)[1][:, -4:]
    overlap = torch.linalg.svdvals(found.basis[1:] @ vectors)
    assert overlap.min() > 0.999
    assert list(found.shares) == sorted(found.shares, reverse=True)
    assert 0 < sum(found.shares) < 1


def test_components_that_are_not_there_are_left_out():
    states = torch.randn(5, 40, dtype=torch.float64)
    found = guard_basis({"embed": torch.randn(40)}, states.T @ states, 16)
    assert len(found.basis) <= 6


def test_what_is_left_of_a_row_that_is_nearly_all_guard():
    first, products, _ = made()
    basis = guard_basis(first, products, 4).basis
    left, removed = guard(basis[2] + 1e-5 * torch.randn(40), basis)
    assert (left @ basis.T).abs().max() < 1e-15
    assert removed > 0.999999


def test_a_direction_that_is_all_guard():
    first, products, _ = made()
    basis = guard_basis(first, products, 2).basis
    with pytest.raises(RefusedError, match="wholly in what the guard takes out"):
        guard(basis[1], basis)


def test_a_guard_that_leaves_nothing():
    first, products, _ = made()
    with pytest.raises(RefusedError, match="would leave nothing"):
        guard_basis(first, products, 39)
