"""Selections between two ranks, and of a share of what is not zero, against sorting."""

import numpy as np
import pytest
import torch

from surgeon.space.selection import MagnitudeBand, NonzeroShare
from surgeon.space.statistics import Statistic


def found(statistic: Statistic, values: torch.Tensor, settings: dict, block: int):
    """What a statistic gives for the first block, after rounds over blocks of this size."""
    known = statistic.begin(len(values), values.shape[1], settings)
    for _ in range(statistic.rounds):
        partials: dict = {}
        for start in range(0, values.shape[1], block):
            part = values[:, start : start + block]
            wanted = statistic.wanted(known, (0, start), part.shape[1])
            if wanted:
                statistic.collect(known, partials, (0, start), statistic.observe(known, part[:, :wanted], (0, start)))
        known = statistic.conclude(known, partials)
    return statistic.at(known, (0, 0))


def descending(row: np.ndarray) -> np.ndarray:
    return np.argsort(-np.abs(row), kind="stable")


def only(row: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    kept = np.zeros_like(row)
    kept[chosen] = row[chosen]
    return kept


@pytest.mark.parametrize("block", [4096, 65_536])
@pytest.mark.parametrize(
    ("density", "gamma"), [(0.5, 0.1), (0.02, 0.01), (0.9, 0.3), (1.0, 0.2), (0.3, 0.0), (1e-9, 0.5)]
)
def test_a_band_is_what_lies_between_two_ranks(density: float, gamma: float, block: int) -> None:
    values = torch.randn(2, 70_001, generator=torch.Generator().manual_seed(3)).bfloat16().float()
    settings = {"density": (density, 0.5), "gamma": (gamma, 0.25), "least": 1}
    kept = found(MagnitudeBand(), values, settings, block).trim(values)
    count = values.shape[1]
    for row, own, share, top in zip(values.numpy(), kept.numpy(), *list(settings.values())[:2], strict=True):
        size = count if share >= 1 else max(int(share * count), 1)
        reached = min(size + int(top * count), count)
        np.testing.assert_array_equal(own, only(row, descending(row)[reached - size : reached]))


@pytest.mark.parametrize("size", range(1, 12))
def test_no_tensor_is_too_small_for_a_band(size: int) -> None:
    """With n < 1/gamma no outlier is cut off, and something is always kept; none where `least` is 0."""
    values = torch.randn(1, size, generator=torch.Generator().manual_seed(4))
    kept = {
        least: found(MagnitudeBand(), values, {"density": (0.4,), "gamma": (0.01,), "least": least}, 4096).trim(values)
        for least in (0, 1)
    }
    assert int(kept[1].count_nonzero()) == max(int(0.4 * size), 1)
    assert int(kept[0].count_nonzero()) == int(0.4 * size)


@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.97, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e-20])
def test_a_share_of_what_is_not_zero(zeros: float, scale: float) -> None:
    """Also where all zeros lie in front, so that the sample of every block misleads, and among denormal numbers."""
    values = torch.randn(1, 60_000, generator=torch.Generator().manual_seed(5)).square() * scale
    values[0, : int(zeros * 60_000)] = 0
    values *= scale
    for share in (0.5, 0.01, 1e-9):
        cut = found(NonzeroShare("topk"), values, {"topk": share, "least": 0}, 8192)
        row = values[0].numpy()
        keep = int(share * np.count_nonzero(row))
        np.testing.assert_array_equal(cut.trim(values)[0].numpy(), only(row, descending(row)[:keep]))
    if zeros < 1:
        cut = found(NonzeroShare("topk"), values, {"topk": 1e-9, "least": 1}, 8192)
        assert int(cut.trim(values).count_nonzero()) == 1
