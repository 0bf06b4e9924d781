"""Blocks before an edited one are not run again; the result is that of a whole pass, and the model stays whole."""

from pathlib import Path

import pytest
import torch

from surgeon.runtime.load import load
from surgeon.runtime.prefix import recorded, replayed
from tests.support.family_toys import TOKENS, TOYS, toy


@pytest.mark.parametrize("name", TOYS)
def test_a_change_in_a_block_gives_the_same_logits_without_running_what_is_before(tmp_path: Path, name: str):
    held = load(toy(tmp_path, name))
    last = len(held.blocks) - 1
    with torch.no_grad():
        with recorded(held) as outputs:
            before = held.model(TOKENS, use_cache=False).logits
        for parameter in held.blocks[last].parameters():
            parameter.mul_(1.25)
        whole = held.model(TOKENS, use_cache=False).logits
        ran = []
        hook = held.blocks[0].register_forward_pre_hook(lambda *_: ran.append(True))
        with replayed(held, outputs, last):
            replay = held.model(TOKENS, use_cache=False).logits
        hook.remove()
        after = held.model(TOKENS, use_cache=False).logits
    assert not torch.equal(before, whole)
    assert torch.equal(replay, whole)
    assert torch.equal(after, whole)
    assert not ran


def test_the_model_is_whole_again_after_an_error(tmp_path: Path):
    held = load(toy(tmp_path, next(iter(TOYS))))
    blocks = list(held.blocks)
    with pytest.raises(ZeroDivisionError), replayed(held, dict.fromkeys(range(len(blocks))), 1):
        raise ZeroDivisionError
    assert list(held.blocks) == blocks
