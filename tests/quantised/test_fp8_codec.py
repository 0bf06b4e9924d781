"""FP8 weights as numbers: read as transformers reads them; made again without a change, they are what they were."""

import pytest
import torch

from surgeon.space.fp8 import codes, maxima, scales
from surgeon.space.kernels import Block, Call, kernel_named
from tests.support.quantised_toys import block_dequantised, block_quantised


def drawn(*shape, seed=0):
    """Normal weights, some rows a thousand times smaller, one block of zeros."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02
    weight[..., ::7, :] *= 1e-3
    weight[..., :16, :16] = 0
    return weight


def read(stored, scale, block, start=0, stop=None):
    stop = stored.numel() if stop is None else stop
    call = Call({"block": block}, Block("w", tuple(stored.shape), start, stop), [scale.float()])
    return kernel_named("fp8:dequantise")(stored.float().reshape(1, -1)[:, start:stop].clone(), call)


@pytest.mark.parametrize("shape", [(32, 48), (3, 32, 48)])
@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_read_and_made_as_transformers_does(shape, scale_fmt):
    weight, block = drawn(*shape), (16, 16)
    stored, scale = block_quantised(weight, block, scale_fmt)
    assert torch.equal(read(stored, scale, block).reshape(shape), block_dequantised(stored, scale))
    again = scales(weight, torch.full(scale.shape, 7.0), block, scale_fmt is not None, scale.dtype)
    mine = codes(weight, again, block).to(torch.float8_e4m3fn)
    zero = scale.float() == maxima(torch.ones(shape), block)  # a block of zeros keeps the scale it had
    torch.testing.assert_close(again[~zero], scale.float()[~zero], rtol=3e-7, atol=0)
    differing = (mine.float() != stored.float()).float().mean()
    assert differing < 1e-3  # a division where they multiply by the reciprocal


def test_any_run_of_elements_is_read_alone():
    stored, scale = block_quantised(drawn(32, 48), (16, 16))
    whole = read(stored, scale, (16, 16))
    for start, stop in [(0, 5), (40, 60), (48, 96), (777, 1536)]:
        assert torch.equal(read(stored, scale, (16, 16), start, stop), whole[start:stop])


CONVENTIONS = {
    "float32": lambda largest: largest / 448,
    "by a reciprocal": lambda largest: 1 / (448 / largest),
    "bfloat16": lambda largest: (largest / 448).bfloat16(),
    "a power of two": lambda largest: torch.exp2(torch.ceil(torch.log2(largest / 448))),
}


@pytest.mark.parametrize("block", [(16, 16), (1, 50), (33, 50), (128, 128)])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("seed", range(5))
def test_without_an_edit_requantising_is_the_identity(block, convention, seed):
    """Whatever made the scale; also where the last blocks are not whole."""
    weight = torch.randn(33, 50, generator=torch.Generator().manual_seed(seed))
    block = min(block[0], 33), min(block[1], 50)
    scale = CONVENTIONS[convention](maxima(weight, block))
    stored = codes(weight, scale.float(), block).to(torch.float8_e4m3fn)
    exact = read(stored, scale, block).reshape(33, 50)
    again = scales(exact, scale.float(), block, convention == "a power of two", scale.dtype)
    assert torch.equal(again, scale.float())
    assert torch.equal(codes(exact, again, block).to(torch.float8_e4m3fn).view(torch.uint8), stored.view(torch.uint8))


def test_a_changed_block_gets_the_scale_of_its_own_largest_entry():
    weight = drawn(32, 48)
    stored, scale = block_quantised(weight, (16, 16))
    exact = read(stored, scale, (16, 16)).reshape(32, 48)
    exact[20, 20] *= 100
    again = scales(exact, scale, (16, 16), False, torch.float32)
    changed = again != scale
    assert changed.nonzero().tolist() == [[1, 1]]
    assert again[1, 1] == exact[16:32, 16:32].abs().max() / 448
    mine = read(codes(exact, again, (16, 16)), again, (16, 16)).reshape(32, 48)
    assert (mine - exact).abs().max() <= exact.abs().max() / 28  # 16 of 448 between the largest codes
