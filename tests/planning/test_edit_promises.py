"""A promise is one of the file: it needs the gains as they end up and as they are stored."""

from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.artifacts.direction import direction
from surgeon.planning.claims import claims
from surgeon.space.expr import Expr
from surgeon.space.schedule import Rule, Rules, exact
from surgeon.testing.toys import random_tensors, write_checkpoint

D, N = 64, 96
GAIN = "model.layers.0.post_feedforward_layernorm.weight"
WRITER = "model.layers.0.mlp.down_proj.weight"
SHAPES = {"model.embed_tokens.weight": (9, D), WRITER: (D, N), GAIN: (D,), "model.norm.weight": (D,)}
CONFIG = {"model_type": "gemma2", "hidden_size": D, "tie_word_embeddings": True}
ROW = torch.randn(D, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def models(tmp_path: Path) -> tuple[Expr, Expr]:
    tensors = [random_tensors(SHAPES, seed) for seed in (0, 1)]
    for one in tensors:
        one[GAIN] -= 1.9  # gains near zero: rounding the weight to 16 bit moves them far
    paths = [write_checkpoint(tmp_path / str(at), one, CONFIG) for at, one in enumerate(tensors)]
    one, other = map(surgeon.open, paths)
    return one, other


def ablated(of: Expr, **given) -> Expr:
    return surgeon.edit("ablate", of, directions=direction(ROW, at="block.0"), **given)


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
def test_gains_are_those_of_the_file_also_in_16_bit_after_a_merge(models, tmp_path: Path, rounding: str):
    from surgeon.space.output import Output, Recipe

    merged = 0.5 * models[0] + 0.5 * models[1]
    surgeon.apply(Recipe(ablated(merged), Output(dtype="BF16", rounding=rounding)), tmp_path / "out")
    verdict = surgeon.verify(tmp_path / "out")
    assert verdict.exit_code == 0, verdict.explain()
    if rounding == "compensated":
        assert max(verdict.checked["zeros"].values()) < 1e-5


def test_a_later_change_of_the_gain_drops_the_promise_behind_it_and_the_claim(models, tmp_path: Path):
    only_norms = Rules((Rule("*layernorm*", exact(0.5)), Rule(None, exact(0))))
    untied = [surgeon.reshape("untie", model) for model in models]
    plan = surgeon.plan(ablated(untied[0]) + only_norms * (untied[1] - untied[0]))
    promised = {target.name for target in plan.targets if target.promise}
    assert WRITER not in promised
    assert "model.embed_tokens.weight" in promised
    assert any("output norms" in warning for warning in plan.warnings)
    assert [claim.claim for claim in claims(plan)] == [None]
    assert [claim.claim for claim in claims(surgeon.plan(ablated(untied[0])))] == ["everywhere"]


def test_a_head_stored_beside_a_tied_embedding_follows_it(models, tmp_path: Path):
    tensors = random_tensors(SHAPES, 0)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    both = surgeon.open(write_checkpoint(tmp_path / "both", tensors, CONFIG))
    surgeon.apply(ablated(both, tied="both"), tmp_path / "out")
    from surgeon.testing.toys import read_checkpoint

    written = read_checkpoint(tmp_path / "out")
    assert torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])
    assert not torch.equal(written["lm_head.weight"], tensors["lm_head.weight"])


def test_more_directions_than_the_stream_is_wide_are_refused(models):
    rows = direction(torch.randn(D + 1, D), at="block.0")
    with pytest.raises(surgeon.MismatchError, match="65 directions"):
        surgeon.plan(surgeon.edit("ablate", models[0], directions=rows))
