"""An edit of a merge sees another tensor's merged value and a statistic of the whole tensor; its bytes are its own.

The direction r is taken out of what a layer behind an output norm writes: q ∝ gain ⊙ r with the gain as merged, and
W' = W − q (qᵀW), which needs qᵀW of all rows before any row can be computed.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import surgeon
from surgeon.artifacts.direction import direction
from surgeon.engine.run import run
from surgeon.errors import MismatchError, SurgeonError
from surgeon.planning.options import Options
from surgeon.planning.plan import build
from surgeon.planning.spanning import spanning
from surgeon.space.editing_api import edit, reshape
from surgeon.space.expr import Edit, Expr, Merge
from surgeon.space.output import Output, Recipe
from surgeon.store.layout import lay_out
from surgeon.store.writer import FolderWriter
from surgeon.testing.toys import random_tensors, read_checkpoint, write_checkpoint

ROWS, COLUMNS = 700, 1201
WRITER = "model.layers.0.mlp.down_proj.weight"
GAIN = "model.layers.0.post_feedforward_layernorm.weight"
EMBED = "model.embed_tokens.weight"
CONFIG = {"model_type": "gemma2", "hidden_size": ROWS, "tie_word_embeddings": True}
ROW = torch.randn(ROWS, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def merged(tmp_path: Path) -> Merge:
    shapes = {EMBED: (9, ROWS), WRITER: (ROWS, COLUMNS), GAIN: (ROWS,), "model.norm.weight": (ROWS,)}
    paths = [write_checkpoint(tmp_path / name, random_tensors(shapes, seed), CONFIG) for seed, name in enumerate("abc")]
    a, b, c = map(surgeon.open, paths)
    return surgeon.merge("ties", [b, c], base_model=a, weight=[0.6, 0.4], density=0.4)


def ablated(of: Expr, **given: Any) -> Edit:
    return edit("ablate", of, directions=direction(ROW, at="block.0"), **given)


def write(expr: Expr, folder: Path, output: Output | None = None, **options: Any) -> dict[str, Tensor]:
    """The tensors of an expression, as written by the engine."""
    plan = build(Recipe(expr, output or Output()), Options(**options))
    layout = lay_out({target.name: target.spec for target in plan.targets}, None, None)
    writer = FolderWriter(folder, layout)
    writer.create()
    run(plan, writer)
    writer.close()
    return read_checkpoint(folder)


@pytest.mark.parametrize("over", ["tensor", "model"])
def test_an_edit_of_a_merge_sees_the_merged_gain_and_the_whole_tensor(merged: Merge, tmp_path: Path, over: str):
    merged = dataclasses.replace(merged, settings=(*merged.settings, ("over", over)))
    plain = write(merged, tmp_path / "plain")
    edited = write(ablated(merged), tmp_path / "edited")
    gain = edited[GAIN].double() + 1
    assert torch.equal(edited[GAIN], plain[GAIN])
    assert torch.equal(edited["model.norm.weight"], plain["model.norm.weight"])
    unit = gain * ROW.double() / torch.linalg.vector_norm(gain * ROW.double())
    assert (unit @ plain[WRITER].double()).abs().max() > 0.1
    assert (unit @ edited[WRITER].double()).abs().max() < 1e-6
    weight = plain[WRITER].double()
    exact = weight - unit[:, None] * (unit @ weight)
    assert torch.allclose(edited[WRITER].double(), exact, rtol=0, atol=1e-6)
    assert (edited[EMBED].double() @ ROW.double()).abs().max() / ROW.norm() < 1e-6
    assert torch.equal(edited["lm_head.weight"], plain[EMBED])


def test_its_bytes_do_not_depend_on_blocks_memory_or_threads(
    merged: Merge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = write(ablated(merged), tmp_path / "usual")
    settings = [{"block": 1 << 16}, {"block": 64_000_000, "threads": 2}, {"block": 77_777, "threads": 4}]
    for number, options in enumerate(settings):
        if number:
            monkeypatch.setattr("surgeon.planning.memory.USUAL_BUDGET", 0)
        found = write(ablated(merged), tmp_path / str(number), **options)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_gain_counts_once_in_a_threshold_over_the_model(merged: Merge):
    """The edited tensor needs the gain too; the model's statistic must not look at it twice."""
    over = dataclasses.replace(merged, settings=(*merged.settings, ("over", "model")))
    plan = build(Recipe(ablated(over, layers=(0, 1))))
    ((members),) = spanning(plan.steps, plan.targets).values()
    assert sorted(step.key.tensor for _, step, _ in members) == sorted(target.name for target in plan.targets)
    assert len({step.number for _, step, _ in members}) == len(plan.targets)


def test_the_plan_names_the_edit_its_promise_and_its_tier(merged: Merge):
    plan = build(Recipe(ablated(merged)))
    target = next(target for target in plan.targets if target.name == WRITER)
    assert target.reason == "ties → ablate"
    assert target.promise is not None
    assert target.promise.gains == (GAIN,)
    assert plan.tier == "B"
    assert plan.config == {"tie_word_embeddings": False}
    assert build(Recipe(ablated(merged)), Options(memory=plan.peak, threads=1)).peak <= plan.peak


def test_what_is_added_after_an_ablation_drops_its_promise_and_the_plan_says_so(merged: Merge):
    untouched = reshape("untie", merged.members[0].of)
    plan = build(Recipe(0.5 * ablated(merged) + 0.5 * untouched))
    assert not any(target.promise for target in plan.targets)
    assert any("it may come back" in warning for warning in plan.warnings)


def test_half_strength_promises_nothing_and_zero_strength_copies(merged: Merge):
    base = merged.base_model
    assert base is not None
    assert not any(target.promise for target in build(Recipe(ablated(base, strength=0.5))).targets)
    assert all(target.action == "copy" for target in build(Recipe(ablated(base, strength=0))).targets)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": (0, 2)}, r"layers 0\.\.2"),
        ({"layers": (1, 1)}, r"layers 1\.\.1"),
        ({"writers": "mpl"}, "did you mean 'mlp'"),
        ({"writers": "attention"}, "edits nothing"),
        ({"at": "block.1"}, "did you mean 'block.0'"),
        ({"at": "own"}, "holds no direction of its own at embed"),
        ({"tied": "maybe"}, "untie, both, skip"),
    ],
)
def test_what_does_not_fit_is_refused(merged: Merge, given: dict[str, Any], message: str):
    with pytest.raises(SurgeonError, match=message):
        build(Recipe(ablated(merged, **given)))


def test_an_unknown_architecture_width_or_tensor_is_refused_by_name(tmp_path: Path):
    tensors = random_tensors({EMBED: (9, 16), "model.layers.0.mlp.down_proj.weight": (16, 8), "model.new": (16, 8)}, 0)
    unknown = surgeon.open(write_checkpoint(tmp_path / "u", tensors, CONFIG | {"model_type": "gema2"}))
    row = direction(torch.ones(16), at="block.0")
    with pytest.raises(MismatchError, match="did you mean 'gemma2'"):
        build(Recipe(edit("ablate", unknown, directions=row)))
    del tensors["model.layers.0.mlp.down_proj.weight"]
    known = surgeon.open(write_checkpoint(tmp_path / "k", tensors, CONFIG | {"hidden_size": 16}))
    with pytest.raises(MismatchError, match=r"model\.new"):
        build(Recipe(edit("ablate", known, directions=row)))
    assert build(Recipe(edit("ablate", known, directions=row, allow_partial=True)))
    with pytest.raises(MismatchError, match="17 wide and the stream 16"):
        build(Recipe(edit("ablate", known, directions=direction(torch.ones(17), at="x"), allow_partial=True)))
