"""The running average of a series: its recurrence, its ends, and what it costs to average equal checkpoints."""

import pytest
import torch

from surgeon.methods.ema import ema
from surgeon.methods.linear import linear

SERIES = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))


def test_by_the_rule_of_one_over_n_it_is_the_mean():
    torch.testing.assert_close(ema(SERIES), SERIES.mean(0))
    torch.testing.assert_close(ema(SERIES), linear(SERIES, (1.0,) * 6))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
def test_the_recurrence(decay):
    expected = SERIES[0]
    for model in SERIES[1:]:
        expected = decay * expected + (1 - decay) * model
    torch.testing.assert_close(ema(SERIES, decay, warmup=False), expected)


def test_warmup_bounds_the_weight_of_the_first():
    torch.testing.assert_close(ema(SERIES[:4], 0.9), SERIES[:4].mean(0))
    assert not torch.allclose(ema(SERIES[:4], 0.9, warmup=False), SERIES[:4].mean(0), atol=0.1)
    assert torch.equal(ema(SERIES, 0.0), SERIES[-1])


def test_equal_checkpoints_give_their_bytes():
    assert torch.equal(ema(SERIES[:1].expand(5, -1).clone(), 0.37), SERIES[0])
