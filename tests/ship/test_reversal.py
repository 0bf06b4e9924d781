"""Rounded changes undone: every number that gives one result lies in the run found, and the codes tell them apart."""

import pytest
import torch

from surgeon.ship.reversal import KEYS, CodeReader, Codes, changed, keys, numbers, runs


@pytest.mark.parametrize("dtype", list(KEYS))
def test_keys_are_in_the_order_of_the_numbers_and_turn_back(dtype):
    special = torch.tensor([-1e30 if dtype != torch.float16 else -6e4, -1.0, -1e-7, -0.0, 0.0, 1e-7, 1.0, 3.0])
    values = special.to(dtype)
    assert (keys(values).long().diff() > 0).sum() + (values.diff() == 0).sum() >= len(values) - 1
    assert keys(torch.tensor([-0.0, 0.0], dtype=dtype)).tolist() == [-1, 0]
    everything = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(KEYS[dtype])
    assert torch.equal(keys(numbers(everything, dtype)), everything)


@pytest.mark.parametrize("before", list(KEYS))
@pytest.mark.parametrize("after", list(KEYS))
def test_what_was_rounded_away_comes_back(before, after):
    generator = torch.Generator().manual_seed(3)
    sizes = 10.0 ** torch.randint(-6, 2, (4000,), generator=generator)
    values = (torch.randn(4000, generator=generator) * sizes).to(before)
    values[:4] = torch.tensor([0.0, -0.0, 1.0, -2.0]).to(before)
    change = torch.randn(4000, generator=generator) * 0.05
    change[:3] = 0.0
    result = changed(values, change, after)
    again, several = runs(result, change, before)
    codes = Codes()
    codes.add(values, several)
    CodeReader(*codes.packed()).restore(again, several)
    assert torch.equal(keys(again), keys(values))


def test_a_run_is_exactly_the_numbers_that_give_the_result():
    """Every one of the 65 536 numbers of bfloat16 is tried."""
    every = numbers(torch.arange(-32640, 32640).to(torch.int16), torch.bfloat16)  # all that are finite
    for change, value in ((0.05, 0.003), (-0.7, 1.3), (0.0, -0.0), (3e-3, 3e-3)):
        result = changed(torch.tensor([value]).bfloat16(), torch.tensor([change]), torch.bfloat16)
        giving = (keys(changed(every, torch.full((len(every),), change), torch.bfloat16)) == keys(result)).nonzero()
        again, several = runs(result, torch.tensor([change]), torch.bfloat16)
        first = int(several.first[0]) if len(several.first) else int(keys(again)[0])
        count = int(several.count[0]) if len(several.count) else 1
        assert (giving[:, 0] - 32640).tolist() == list(range(first, first + count))


def test_codes_that_do_not_fit_are_an_error():
    values, change = torch.full((9,), 0.001).bfloat16(), torch.full((9,), -1.0)
    again, several = runs(changed(values, change, torch.bfloat16), change, torch.bfloat16)
    codes = Codes()
    codes.add(values, several)
    counts, packed = codes.packed()
    with pytest.raises(ValueError, match="codes"):
        CodeReader(counts, packed[:-1])
    with pytest.raises(ValueError, match="fewer codes"):
        CodeReader({}, b"").restore(again, several)
