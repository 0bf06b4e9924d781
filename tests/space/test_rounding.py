"""Compensated rounding: what is stored is orthogonal to the frame, few entries move, each to its other neighbour."""

import pytest
import torch
from torch import Tensor

from surgeon.space.edit_kernels import orthonormal
from surgeon.space.kernels import Block, Call, kernel_named
from surgeon.space.rounding import compensate

BF16, F16 = torch.bfloat16, torch.float16
KERNELS = {BF16: "round:BF16", F16: "round:F16"}


def weights(d: int, n: int, outlier: float = 10.0) -> Tensor:
    """N(0, 0.02) with log-normal row norms and one outlier row."""
    generator = torch.Generator().manual_seed(d)
    norms = torch.exp(0.35 * torch.randn(d, 1, generator=generator))
    drawn = 0.02 * norms * torch.randn(d, n, generator=generator)
    drawn[7 % d] *= outlier
    return drawn


def frame(d: int, rank: int, kind: str = "random") -> Tensor:
    """Orthonormal columns of random rows, as they are or behind an output norm with zeros and negative gains."""
    generator = torch.Generator().manual_seed(rank)
    rows = torch.randn(rank, d, generator=generator)
    if kind == "random":
        return orthonormal(rows)
    gains = torch.exp(0.8 * torch.randn(d, generator=generator)) * torch.randn(d, generator=generator).sign()
    gains[::11] = 0
    return orthonormal(rows, gains)


def removed(weight: Tensor, columns: Tensor) -> Tensor:
    narrow = columns.float()
    return weight - narrow @ (narrow.T @ weight)


def moved(stored: Tensor, exact: Tensor) -> Tensor:
    """How many 16-bit numbers lie between what is stored and the nearest rounding."""
    nearest = exact.to(stored.dtype)
    return (stored.view(torch.int16).int() - nearest.view(torch.int16).int()).abs()


def along(columns: Tensor, values: Tensor) -> float:
    return float((columns.T @ values.double()).norm())


def rounded(name: str, values: Tensor, columns: Tensor) -> Tensor:
    """What a kernel makes of a whole tensor."""
    block = Block("w", tuple(values.shape), 0, values.numel())
    return kernel_named(name)(values.clone()[None], Call({}, block, [columns])).reshape(values.shape)


@pytest.mark.parametrize("kind", ["random", "gains"])
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("d", [576, 2048])
@pytest.mark.parametrize(("rank", "bound"), [(1, 1e-6), (3, 1e-4)])
def test_what_is_stored_holds_nothing_of_the_subspace(d: int, rank: int, bound: float, dtype, kind: str):
    before, columns = weights(d, 96), frame(d, rank, kind)
    exact = removed(before, columns)
    stored = compensate(exact, columns, dtype)
    assert along(columns, stored) <= bound * along(columns, before)
    assert along(columns, exact.to(dtype)) > 50 * along(columns, stored)
    steps = moved(stored, exact)
    assert steps.max() == 1
    assert (steps > 0).double().mean() <= 0.02


@pytest.mark.parametrize("d", [576, 2048])
@pytest.mark.parametrize(("rank", "bound"), [(1, 3e-7), (3, 1e-4)])
def test_weights_that_were_stored_in_16_bits_and_hold_little_of_the_subspace(d: int, rank: int, bound: float):
    """Where the change is far below a step, all nearest roundings err one way, and all steps back lead one way."""
    generator, columns = torch.Generator().manual_seed(1), frame(d, rank)
    before = (0.02 * torch.randn(d, 512, generator=generator)).bfloat16().float()
    before[7, ::2] = (before[7, ::2] * 30).bfloat16().float()
    exact = removed(before, columns)
    stored = compensate(exact, columns, BF16)
    assert along(columns, stored) <= bound * along(columns, before)
    assert (moved(stored, exact) > 0).double().mean() <= 0.02


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_every_entry_is_a_neighbour_of_the_exact_value(dtype):
    exact, columns = removed(weights(200, 60), frame(200, 2)), frame(200, 2)
    stored = compensate(exact, columns, dtype)
    bits = stored.view(torch.int16)
    below, above = (bits - 1).view(dtype).double(), (bits + 1).view(dtype).double()
    error = (stored.double() - exact.double()).abs()
    gap = torch.minimum((above - stored.double()).abs(), (below - stored.double()).abs())
    assert (error <= 2 * gap).all()
    assert (error[moved(stored, exact) > 0] > 0).all()
    other = torch.where(exact.double().abs() > stored.double().abs(), above, below)
    between = (stored.double() - exact.double()) * (other - exact.double())
    assert (between[error > 0] <= 0).all()


def test_a_vector_is_rounded_alike_in_any_company_and_layout():
    columns = frame(576, 3)
    exact = removed(weights(576, 1300), columns)
    stored = compensate(exact, columns, BF16)
    assert torch.equal(compensate(exact, columns, BF16), stored)
    for part in (slice(0, 1), slice(100, 107), slice(500, 1300)):
        assert torch.equal(compensate(exact[:, part], columns, BF16), stored[:, part])
    assert torch.equal(compensate(exact.T.contiguous().T, columns, BF16), stored)
    assert torch.equal(rounded("round:BF16@last", exact.T.contiguous(), columns).T, stored.float())
    assert torch.equal(rounded("round:BF16", exact, columns), stored.float())


@pytest.mark.parametrize("dtype", KERNELS)
@pytest.mark.parametrize("shape", [(3, 64, 20), (64, 20)])
def test_kernels_round_each_matrix_to_numbers_of_the_dtype(dtype, shape: tuple[int, ...]):
    columns = frame(64, 2)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = rounded(KERNELS[dtype], values, columns)
    assert found.dtype == torch.float32
    assert torch.equal(found.to(dtype).float(), found)
    for matrix, stored in zip(values.reshape(-1, 64, 20), found.reshape(-1, 64, 20), strict=True):
        assert torch.equal(compensate(matrix, columns, dtype).float(), stored)
    turned = values.transpose(-1, -2).contiguous()
    assert torch.equal(rounded(KERNELS[dtype] + "@last", turned, columns), found.transpose(-1, -2))


def test_a_bias_is_one_vector():
    columns, bias = frame(576, 1), removed(weights(576, 1), frame(576, 1))
    found = rounded("round:BF16@last", bias[:, 0], columns)
    assert torch.equal(found, compensate(bias, columns, BF16)[:, 0].float())
    assert along(columns, found[:, None]) < 1e-2 * along(columns, bias.to(BF16))


@pytest.mark.parametrize("d", [1, 2, 3, 7, 16, 33])
@pytest.mark.parametrize("rank", [1, 2])
def test_narrow_streams_are_no_worse_than_nearest(d: int, rank: int):
    columns = frame(d, min(rank, d))
    exact = removed(torch.randn(d, 50, generator=torch.Generator().manual_seed(d)), columns)
    stored = compensate(exact, columns, BF16)
    nearest = (columns.T @ exact.to(BF16).double()).norm(dim=0)
    assert ((columns.T @ stored.double()).norm(dim=0) <= nearest).all()


def test_columns_of_zeros_and_single_coordinates():
    exact = removed(weights(300, 40), frame(300, 1))
    alone = compensate(exact, frame(300, 1), BF16)
    padded = torch.cat([frame(300, 1), torch.zeros(300, 2, dtype=torch.float64)], dim=1)
    assert along(frame(300, 1), compensate(exact, padded, BF16)) < 1e-2 * along(frame(300, 1), exact.to(BF16))
    assert torch.equal(compensate(exact, torch.zeros(300, 1, dtype=torch.float64), BF16), exact.to(BF16))
    assert not torch.equal(alone, exact.to(BF16))
    one = torch.zeros(300, 1, dtype=torch.float64)
    one[5] = 1
    assert along(one, compensate(removed(weights(300, 40), one), one, BF16)) == 0


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_extreme_values_are_rounded_as_before(dtype):
    """Zeros stay, nothing overflows by a step, and a column that is not finite is the nearest rounding."""
    columns, largest = frame(64, 2), float(torch.finfo(dtype).max)
    exact = weights(64, 9)
    exact[:, 1] = 0
    exact[:, 2] = -0.0
    exact[:, 3] = 1e-40 * torch.arange(64)
    exact[:, 4] = largest * (1 + 2**-10)
    exact[::2, 4] = largest / 4
    exact[3, 5], exact[4, 6], exact[5, 7] = float("nan"), float("inf"), -float("inf")
    stored = compensate(exact, columns, dtype)
    nearest = exact.to(dtype)
    for column in (1, 2, 5, 6, 7):
        assert torch.equal(stored[:, column].view(torch.int16), nearest[:, column].view(torch.int16))
    assert torch.equal(stored.isfinite(), nearest.isfinite())
    assert moved(stored[:, [0, 3, 4, 8]], exact[:, [0, 3, 4, 8]]).max() <= 1


def test_an_entry_that_cannot_move_stands_in_no_other_way():
    """The largest number of the dtype has no other neighbour; behind a gain of zero it does not count either."""
    columns = orthonormal(torch.randn(1, 64, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 9)
    exact = removed(weights(64, 40), columns)
    without = compensate(exact, columns, F16)
    exact[::9] = float(torch.finfo(F16).max) + 8
    counted = torch.arange(64) % 9 != 0
    assert torch.equal(compensate(exact, columns, F16)[counted], without[counted])


@pytest.mark.parametrize("name", ["round:BF16", "round:F16", "round:BF16@last"])
def test_it_runs_on_meta(name: str):
    shape = (100, 576) if name.endswith("@last") else (2, 576, 100)
    found = rounded(name, torch.empty(shape, device="meta"), torch.empty(576, 3, dtype=torch.float64, device="meta"))
    assert found.shape == shape


def test_blocks_are_what_planning_expects():
    assert kernel_named("round:BF16").blocks == kernel_named("round:F16").blocks == "whole"
    assert kernel_named("round:BF16@last").blocks == "rows"
