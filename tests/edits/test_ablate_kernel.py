"""Ablation on plain tensors against float64 numpy; the columns behind an output norm; dependent directions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from surgeon.artifacts.direction import direction
from surgeon.edits.ablate import ablate
from surgeon.space.edit_kernels import orthonormal
from surgeon.space.kernels import Block, Call, kernel_named


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_definition(weight: Tensor, rows: Tensor, strength: float) -> np.ndarray:
    """(I − s·P) W in float64, P the orthogonal projection on the span of the rows."""
    basis = rows.double().numpy().T
    projection = basis @ np.linalg.pinv(basis)
    return weight.double().numpy() - strength * (projection @ weight.double().numpy())


def columns(rows: Tensor, gains: list[Tensor], gain: float = 0.0) -> Tensor:
    """The columns as a plan's step makes them: `gain` is added to every norm's weights."""
    settings = {
        "directions": ((direction(rows, at="block.0"), "block.0"),),
        "gain": gain,
        "written": ("F64",) * len(gains),
    }
    shape = rows.shape[1], len(rows)
    call = Call(settings, Block("w", shape, 0, rows.numel()), gains)
    return kernel_named("frame:columns")(torch.empty(0, *shape), call)


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("rank", [1, 3])
def test_ablation_is_the_projection(rank: int, strength: float):
    weight, rows = drawn(48, 70), drawn(rank, 48, seed=1)
    found = ablate(weight, orthonormal(rows).float(), strength=strength)
    assert np.allclose(found.numpy(), by_definition(weight, rows, strength), rtol=0, atol=3e-6)


def test_one_direction_and_one_vector_need_no_second_axis():
    bias, row = drawn(48), drawn(48, seed=1)
    found = ablate(bias, row / row.norm())
    assert found.shape == bias.shape
    assert np.allclose(found.numpy()[:, None], by_definition(bias[:, None], row[None], 1.0), rtol=0, atol=1e-6)
    assert np.allclose(ablate(drawn(48, 7), row / row.norm()), by_definition(drawn(48, 7), row[None], 1.0), atol=2e-6)


def test_coordinates_may_be_given():
    """A band of rows is computed from what all rows hold."""
    weight, frame = drawn(48, 70), orthonormal(drawn(2, 48)).float()
    inside, whole = frame.T @ weight, ablate(weight, frame)
    bands = [ablate.function(weight[at], frame[at], 1.0, inside) for at in (slice(0, 20), slice(20, 48))]
    assert torch.allclose(torch.cat(bands), whole, atol=1e-6)


def test_two_reflections_are_none_and_a_negative_strength_strengthens():
    weight, frame = drawn(48, 70), orthonormal(drawn(2, 48)).float()
    once = ablate(weight, frame, strength=2.0)
    assert torch.allclose(frame.T @ once, -(frame.T @ weight), atol=1e-5)
    assert torch.allclose(ablate(once, frame, strength=2.0), weight, atol=1e-5)
    assert torch.allclose(frame.T @ ablate(weight, frame, strength=-1.0), 2 * (frame.T @ weight), atol=1e-5)


def test_columns_are_orthonormal_and_span_the_rows():
    rows = drawn(3, 48) * torch.tensor([[1e-6], [1.0], [1e6]])
    frame = orthonormal(rows)
    assert frame.dtype == torch.float64
    assert torch.allclose(frame.T @ frame, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(frame @ (frame.T @ rows.double().T), rows.double().T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_behind_an_output_norm_nothing_reaches_the_stream(rank: int, gain: float):
    """(γ ⊙ r)ᵀ W' = 0, where γ has zeros and negative entries; the usual edit leaves much."""
    weight, rows, stored = drawn(48, 70), drawn(rank, 48, seed=1), drawn(48, seed=2)
    stored[::7] = -gain
    gamma = stored.double() + gain
    assert (gamma == 0).any()
    assert (gamma < 0).any()
    written = ablate(weight.double(), columns(rows, [stored], gain))
    seen = rows.double() * gamma
    assert (seen @ written).abs().max() < 1e-12 * (seen @ weight.double()).abs().max()
    usual = ablate(weight.double(), orthonormal(rows))
    assert (seen @ usual).abs().max() > 0.1 * (seen @ weight.double()).abs().max()
    assert np.allclose(written, by_definition(weight, seen, 1.0), atol=1e-12)


def test_norms_behind_one_another_multiply():
    rows, first, second = drawn(2, 48), drawn(48, seed=1), drawn(48, seed=2)
    written = ablate(drawn(48, 70).double(), columns(rows, [first, second], gain=1.0))
    assert (rows.double() * (1 + first.double()) * (1 + second.double()) @ written).abs().max() < 1e-11


def test_dependent_directions_count_once():
    """A direction named twice, in other lengths, or a sum of others changes nothing; columns of zeros fill up."""
    weight, rows = drawn(48, 70).double(), drawn(2, 48)
    wanted = ablate(weight, orthonormal(rows))
    for more in (rows[:1] * 3, -rows[1:], rows[:1] - 2 * rows[1:]):
        frame = orthonormal(torch.cat([rows, more]))
        assert frame.shape == (48, 3)
        assert torch.linalg.matrix_rank(frame) == 2
        assert torch.allclose(ablate(weight, frame), wanted, atol=1e-6)


def test_gains_of_zero_along_a_direction_leave_nothing_to_remove():
    rows, gains = torch.zeros(2, 48), torch.ones(48)
    rows[0, 5] = rows[1, 6] = 1.0
    gains[5] = 0
    for chosen in (rows, rows[:1]):
        frame = orthonormal(chosen, gains)
        assert frame.isfinite().all()
        weight = drawn(48, 70).double()
        assert torch.equal(ablate(weight, frame)[5], weight[5])
    assert ablate(drawn(48, 70).double(), orthonormal(rows, gains))[6].abs().max() < 1e-15
