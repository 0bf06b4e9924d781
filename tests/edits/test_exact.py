"""Exactness: after an everywhere ablation the written model's stream holds nothing of R; baked weights equal hooks."""

import functools
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import torch

import surgeon
from surgeon.artifacts.direction import direction
from surgeon.engine.run import run
from surgeon.planning.options import Options
from surgeon.planning.plan import build
from surgeon.runtime.module_sink import ModuleSink
from surgeon.runtime.names import parameter_views
from surgeon.runtime.points import capture
from surgeon.space.editing_api import edit
from surgeon.space.output import Recipe
from tests.support.family_toys import TOKENS, TOYS, WIDTH, gains, loaded, toy, writing_modules, written

ALL = [(name, tied) for name in TOYS for tied in (False, True)]
CASES = pytest.mark.parametrize(("name", "tied"), ALL, ids=lambda value: str(value))


def directions(k):
    return direction(torch.randn(k, WIDTH, generator=torch.Generator().manual_seed(k)), at="block.0")


def ablated(expr, k, strength=1.0, **given):
    return edit("ablate", expr, directions=directions(k), strength=strength, **given)


@torch.no_grad()
def leftovers(model, rows):
    """Residual point → max|Rᵀh| / max|h|."""
    basis = torch.linalg.qr(rows.double().T).Q
    with capture(model, model.anatomy.points()) as states:
        model.model(TOKENS)
    return {point: ((h.double() @ basis).abs().max() / h.abs().max()).item() for point, h in states.items()}


@contextmanager
def hooked(model, rows, strength):
    """Every writer's output h, before an output norm, is h − s·QQᵀh, Q an orthonormal basis of diag(γ)Rᵀ."""
    with ExitStack() as hooks:
        for module, place in writing_modules(model).values():
            basis = torch.linalg.qr(gains(model, place)[:, None] * rows.double().T).Q
            hooks.callback(module.register_forward_hook(partial(_ablate, basis, strength)).remove)
        yield


def _ablate(basis, strength, module, given, output):
    return (output.double() - strength * (output.double() @ basis) @ basis.T).to(output.dtype)


@torch.no_grad()
def logits(model):
    return model.model(TOKENS).logits


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def assert_close(found, expected):
    assert relative(found, expected) < 1e-4


def assert_nothing_left(model, rows):
    assert {point: value for point, value in leftovers(model, rows).items() if value >= 1e-5} == {}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Toy folders, each made once."""
    return functools.cache(lambda name, tied, seed=0: toy(tmp_path_factory.mktemp("toy") / "model", name, tied, seed))


@CASES
@pytest.mark.parametrize(("k", "strengths"), [(1, (1.0, 2.0)), (3, (1.0, 0.5, 2.0, -1.0))], ids=["k1", "k3"])
def test_an_everywhere_ablation_is_exact(name, tied, k, strengths, made, tmp_path):
    """Baked equals hooks at every strength; at strength 1 no point of the stream holds anything of R."""
    original = loaded(made(name, tied))
    plain, rows = logits(original), directions(k).rows("block.0")
    assert all(value > 1e-2 for value in leftovers(original, rows).values())
    for strength in strengths:
        expr = ablated(surgeon.open(original.folder), k, strength)
        baked = loaded(written(expr, tmp_path / str(strength)))
        assert baked.model.config.tie_word_embeddings is False
        if strength == 1:
            assert_nothing_left(baked, rows)
        with hooked(original, rows, strength):
            assert_close(logits(baked), logits(original))
        assert relative(logits(baked), plain) > 1e-2


@CASES
def test_after_a_merge_the_merged_gains_count(name, tied, made, tmp_path):
    """Two models with different norm gains, merged and ablated in one expression."""
    one, two = (surgeon.open(made(name, tied, seed)) for seed in (0, 1))
    mix, rows = one + 0.4 * (two - one), directions(3).rows("block.0")
    both = loaded(written(ablated(mix, 3), tmp_path / "both"))
    assert_nothing_left(both, rows)
    merged = loaded(written(mix, tmp_path / "merged"))
    with hooked(merged, rows, 1.0):
        assert_close(logits(both), logits(merged))


@CASES
def test_the_module_sink_gives_what_the_written_file_gives(name, tied, made, tmp_path):
    folder = made(name, tied)
    expr = ablated(surgeon.open(folder), 3, 0.5)
    expected = loaded(written(expr, tmp_path / "out"))
    live = loaded(folder)
    before = {name: view.clone() for name, view in parameter_views(live).items()}
    plain = logits(live)
    plan = build(Recipe(expr), Options(threads=2, device="cpu", block=512))
    with ModuleSink(live, {target.name: target.spec for target in plan.targets}) as sink:
        run(plan, sink)
        assert_same(dict(live.model.named_parameters()), dict(expected.model.named_parameters()))
        assert torch.equal(logits(live), logits(expected))
        assert live.model.config.tie_word_embeddings is False
    assert_same(parameter_views(live), before)
    assert torch.equal(logits(live), plain)
    assert live.model.config.tie_word_embeddings is tied


@pytest.mark.parametrize("tied", ["both", "skip"])
def test_tied_stays_tied_where_that_is_asked_for(tied, made, tmp_path):
    folder = made("gemma3", True)
    expr = ablated(surgeon.open(folder), 1, tied=tied)
    expected = loaded(written(expr, tmp_path / "out"))
    assert expected.model.config.tie_word_embeddings is True
    live = loaded(folder)
    with ModuleSink(live) as sink:
        run(build(Recipe(expr), Options(threads=1, device="cpu")), sink)
        assert torch.equal(logits(live), logits(expected))
