"""The k-th magnitude is exact also where the sample that guesses it is no sample at all."""

import numpy as np
import pytest
import torch

from surgeon.space.magnitude import KthMagnitude


def expected(row: np.ndarray, density: float) -> np.ndarray:
    """The row with all but its largest entries zero; of equal ones the first are kept."""
    keep = max(1, int(density * len(row)))
    chosen = np.argsort(-np.abs(row), kind="stable")[:keep]
    mask = np.zeros(len(row), dtype=bool)
    mask[chosen] = True
    return np.where(mask, row, 0)


@pytest.mark.parametrize("factor", [1e-6, 1e6, 0.0])
@pytest.mark.parametrize("block", [65_536, 1 << 20])
def test_a_misleading_sample_costs_a_look_and_nothing_else(factor: float, block: int) -> None:
    values = torch.randn(2, (1 << 21) + 12_345, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    for start in range(0, values.shape[1], block):
        values[:, start : start + block // 16] *= factor
    statistic, densities = KthMagnitude(), (0.3, 0.02)
    known = statistic.begin(2, values.shape[1], {"density": densities})
    looks = []
    for _ in range(statistic.rounds):
        partials: dict = {}
        looks.append(0)
        for start in range(0, values.shape[1], block):
            part = values[:, start : start + block]
            wanted = statistic.wanted(known, (0, start), part.shape[1])
            looks[-1] += wanted
            if wanted:
                statistic.collect(known, partials, (0, start), statistic.observe(known, part[:, :wanted], (0, start)))
        known = statistic.conclude(known, partials)
    assert looks[2] == values.shape[1], "the guess was right after all: this is no test of the second look"
    trimmed = statistic.at(known, (0, 0)).trim(values)
    for row, kept, density in zip(values, trimmed, densities, strict=True):
        np.testing.assert_array_equal(kept.numpy(), expected(row.numpy(), density))


def test_a_fair_sample_needs_one_look_at_everything() -> None:
    values = torch.randn(1, 1 << 22, generator=torch.Generator().manual_seed(2))
    statistic = KthMagnitude()
    known = statistic.begin(1, values.shape[1], {"density": (0.3,)})
    for step in range(statistic.rounds):
        partials: dict = {}
        for start in range(0, values.shape[1], 1 << 18):
            wanted = statistic.wanted(known, (0, start), 1 << 18)
            assert step not in (2, 3) or not wanted
            if wanted:
                seen = statistic.observe(known, values[:, start : start + wanted], (0, start))
                statistic.collect(known, partials, (0, start), seen)
        known = statistic.conclude(known, partials)
    kept = statistic.at(known, (0, 0)).trim(values)[0]
    np.testing.assert_array_equal(kept.numpy(), expected(values[0].numpy(), 0.3))
