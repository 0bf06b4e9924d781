"""The sink that is a loaded model: casts, any piece of any view, one edit after another, and everything put back."""

import itertools

import pytest
import torch
from safetensors.torch import save_file

import surgeon
from surgeon.artifacts.direction import direction
from surgeon.engine.run import run
from surgeon.errors import MismatchError
from surgeon.planning.options import Options
from surgeon.planning.plan import build
from surgeon.runtime.module_sink import ModuleSink, _fill
from surgeon.runtime.names import parameter_views
from surgeon.space.editing_api import edit
from surgeon.space.output import Output, Recipe
from surgeon.testing.toys import read_checkpoint
from tests.support.family_toys import TOKENS, WIDTH, loaded, toy, written

ROWS = direction(torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3)), at="block.0")


def ablated(model, **given):
    return edit("ablate", surgeon.open(model.folder), directions=ROWS, **given)


def apply(expr, sink, dtype=None):
    return run(build(Recipe(expr, Output(dtype=dtype)), Options(threads=2, device="cpu", block=256)), sink)


def bits(model):
    return {name: view.clone() for name, view in parameter_views(model).items()}


def differing(found, expected):
    return {name for name in found if not torch.equal(found[name], expected[name])}


def test_one_edit_after_another_on_the_same_sink(tmp_path):
    """What an earlier plan changed and a later one copies is as it was loaded."""
    model = loaded(toy(tmp_path / "toy", "qwen3_moe"))
    before, sink = bits(model), ModuleSink(model)
    apply(ablated(model, writers="mlp"), sink)
    assert differing(bits(model), before) == {n for n in before if n.endswith("down_proj.weight")}
    apply(ablated(model, writers="attention", layers=(1, 2)), sink)
    assert differing(bits(model), before) == {"model.layers.1.self_attn.o_proj.weight"}
    sink.restore()
    assert differing(bits(model), before) == set()


def test_a_plan_in_another_dtype_is_cast_to_the_parameters(tmp_path):
    model = loaded(toy(tmp_path / "toy", "gemma2"))
    expr = ablated(model)
    expected = loaded(written(expr, tmp_path / "out", dtype="BF16"))
    plan = build(Recipe(expr, Output(dtype="BF16")), Options(threads=1, device="cpu"))
    with ModuleSink(model, {target.name: target.spec for target in plan.targets}) as sink:
        run(plan, sink)
        assert differing(bits(model), bits(expected)) == set()
        assert torch.equal(model.model(TOKENS).logits, expected.model(TOKENS).logits)


def test_equal_tensors_of_another_model_are_copied_from_its_files(tmp_path):
    model, other = (loaded(toy(tmp_path / str(seed), "llama", seed=seed)) for seed in (0, 1))
    with ModuleSink(model) as sink:
        apply(surgeon.open(other.folder), sink)
        assert differing(bits(model), bits(other)) == set()


def test_restores_after_an_error(tmp_path):
    model = loaded(toy(tmp_path / "toy", "gpt2", tied=True))
    before = bits(model)
    targets = build(Recipe(ablated(model))).targets
    with pytest.raises(KeyError), ModuleSink(model, {target.name: target.spec for target in targets}) as sink:
        apply(ablated(model), sink)
        raise KeyError
    assert differing(bits(model), before) == set()
    assert model.model.lm_head.weight is model.model.transformer.wte.weight


def test_a_tied_head_that_is_on_disk_too_is_given_its_own_values(tmp_path):
    folder = toy(tmp_path / "toy", "qwen2", tied=True)
    disk = read_checkpoint(folder)
    disk["lm_head.weight"] = disk["model.embed_tokens.weight"].clone()
    save_file(disk, folder / "model.safetensors", {"format": "pt"})
    model = loaded(folder)
    expected = loaded(written(ablated(model), tmp_path / "out"))
    before, sink = bits(model), ModuleSink(model)
    for _ in range(2):
        apply(ablated(model), sink)
        assert torch.equal(model.model(TOKENS).logits, expected.model(TOKENS).logits)
        sink.restore()
        assert differing(bits(model), before) == set()
        assert model.model.lm_head.weight is model.model.model.embed_tokens.weight


def test_a_tensor_the_model_does_not_hold_is_named(tmp_path):
    sink = ModuleSink(loaded(toy(tmp_path / "toy", "llama")))
    with pytest.raises(MismatchError, match=r"no tensor 'model\.layers\.7\.mlp"):
        sink.write("model.layers.7.mlp.down_proj.weight", 0, memoryview(bytearray(4)))


LAYOUTS = [
    lambda: torch.zeros(3, 4, 5),
    lambda: torch.zeros(3, 5, 4).transpose(1, 2),
    lambda: torch.zeros(4, 3, 5).transpose(0, 1),
    lambda: torch.zeros(3, 4, 9)[..., 2:7],
    lambda: torch.zeros(6, 4, 5)[::2],
]


@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
def test_any_piece_lands_where_it_belongs(layout):
    values = torch.arange(1.0, 61.0)
    for start, stop in itertools.combinations(range(0, 61, 3), 2):
        view = LAYOUTS[layout]()
        _fill(view, start, values[start:stop])
        expected = torch.zeros(60)
        expected[start:stop] = values[start:stop]
        assert torch.equal(view.reshape(-1), expected)
