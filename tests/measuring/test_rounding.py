"""Distances and intervals of floating numbers."""

import pytest
import torch

from surgeon.measuring.rounding import between, cast, steps, ulp, unit
from surgeon.tensors import FLOATS, torch_dtype


@pytest.mark.parametrize("dtype", FLOATS)
def test_ulp_is_the_distance_to_the_next_number(dtype):
    kind = torch_dtype(dtype)
    tiny, small = torch.finfo(kind).tiny, torch.finfo(kind).smallest_normal
    values = torch.tensor([1.0, 1.5, 0.3, 3.0, tiny * 4, small / 2, 0.0], dtype=torch.float64).to(kind)
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    above = (values.view(integers) + 1).view(kind)
    assert torch.equal(ulp(values, dtype), above.double() - values.double())
    assert (ulp(values, dtype)[:4] <= 2 * unit(dtype) * values.double()[:4]).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_steps_count_representable_numbers(dtype):
    kind = torch_dtype(dtype)
    ones = torch.ones(5, dtype=kind)
    others = torch.tensor(
        [1 + 2 * unit(dtype), 1.0, 1 - unit(dtype), 1 + 8 * unit(dtype), 2.0], dtype=torch.float64
    ).to(kind)
    assert steps(ones, others, dtype).tolist()[:4] == [1, 0, 1, 4]
    zero = torch.zeros(1, dtype=kind)
    assert steps(zero, -zero, dtype).item() == 0
    least = torch.finfo(kind).smallest_normal * torch.finfo(kind).eps
    assert steps(torch.tensor([least], dtype=kind), torch.tensor([-least], dtype=kind), dtype).item() == 2


def test_intervals_hold_their_ends_and_nan_only_nan():
    nan = float("nan")
    found = torch.tensor([1.0, 2.0, nan, nan, 1.0])
    low, high = torch.tensor([1.0, 0.0, nan, 0.0, nan]), torch.tensor([1.0, 1.0, nan, 1.0, nan])
    assert between(found, low, high).tolist() == [True, False, True, False, False]
    assert cast(torch.tensor([1.001]), "BF16").item() == 1.0
