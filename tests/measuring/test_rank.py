"""The rank of a change is told above the noise of rounding."""

import pytest
import torch

from surgeon.measuring.rank import estimate


def rank_of(change, noise=0.0):
    def rows():
        for first in range(0, len(change), 7):
            yield first, change[first : first + 7]

    return estimate(rows, tuple(change.shape), float((change * change).sum()), noise)


@pytest.mark.parametrize("rank", [1, 3, 16, 32])
@pytest.mark.parametrize("shape", [(200, 90), (90, 200)])
def test_an_exact_rank_is_found(rank, shape):
    torch.manual_seed(rank)
    change = torch.randn(shape[0], rank).double() @ torch.randn(rank, shape[1]).double()
    found = rank_of(change)
    assert found.rank == rank
    assert found.stable == pytest.approx(
        float((torch.linalg.svdvals(change) ** 2).sum() / torch.linalg.svdvals(change)[0] ** 2), rel=1e-6
    )


def test_rounding_noise_does_not_count():
    torch.manual_seed(0)
    change = torch.randn(300, 4).double() @ torch.randn(4, 200).double()
    noise = 0.01
    assert rank_of(change + noise * torch.randn(300, 200), noise**2).rank == 4
    assert rank_of(noise * torch.randn(300, 200).double(), noise**2).rank == 0
    assert rank_of(torch.randn(300, 200).double(), noise**2).rank is None


def test_a_small_matrix_of_full_rank():
    torch.manual_seed(0)
    assert rank_of(torch.randn(6, 5).double()).rank is None
    assert str(rank_of(torch.randn(6, 5).double())) == "full"
