"""The tables of families, checked against transformers: what they name is what writes the stream, and all that does."""

from collections import defaultdict
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import torch

from surgeon.anatomy.family import Part, Role, families
from surgeon.runtime.names import parameter_views
from surgeon.runtime.points import capture
from tests.support.family_toys import TOKENS, TOYS, WIDTH, gains, loaded, toy, writing_modules

ALL = [(name, tied) for name in TOYS for tied in (False, True)]


@pytest.fixture(scope="module", params=ALL, ids=lambda case: f"{case[0]}{' tied' * case[1]}")
def model(request, tmp_path_factory):
    return loaded(toy(tmp_path_factory.mktemp("toy") / "model", *request.param))


def states(model):
    with capture(model, model.anatomy.points()) as found, torch.no_grad():
        model.model(TOKENS)
    return found


@contextmanager
def changed(model, *roles):
    """Views of the tensors of some roles, and their places; they are put back afterwards."""
    views = parameter_views(model)
    places = {name: place for name, place in model.anatomy.places.items() if place.role in roles and name in views}
    kept = {name: views[name].clone() for name in places}
    try:
        yield views, places
    finally:
        for name, value in kept.items():
            views[name].copy_(value)


def test_every_tensor_is_known(model):
    assert model.anatomy.unknown == ()
    assert model.anatomy.tied == model.model.config.tie_word_embeddings


def test_every_model_type_has_a_toy(tmp_path):
    assert {loaded(toy(tmp_path / name, name)).model.config.model_type for name in TOYS} == families().keys()


def test_without_its_writers_the_stream_is_empty(model):
    """Nothing but what the table calls a writer adds to the stream."""
    with changed(model, Role.WRITES_RESIDUAL) as (views, places):
        for name in places:
            views[name].zero_()
        found = states(model)
    assert {point: value.abs().max().item() for point, value in found.items()} == dict.fromkeys(found, 0.0)
    assert all(value.abs().max() > 0 for value in states(model).values())


def test_the_residual_axis_is_the_declared_one(model):
    """A coordinate that no writer writes, on its declared axis, is zero in the stream; the others are not."""
    with changed(model, Role.WRITES_RESIDUAL) as (views, places):
        for name, place in places.items():
            views[name].select(place.axis, 3).zero_()
        found = states(model)
    for value in found.values():
        assert value[..., 3].abs().max() == 0
        assert value.abs().amax((0, 1)).count_nonzero() == value.shape[-1] - 1


def test_what_a_block_adds_is_what_its_writers_write(model):
    """mid − in is what the attention's writers write, out − mid the MLP's, both through their output norms."""
    outputs, gates = {}, {}
    modules, named = writing_modules(model), dict(model.trunk.named_modules())
    with ExitStack() as hooks:
        for name, (module, _) in modules.items():
            keep = partial(lambda name, _, given, output: outputs.__setitem__(name, output), name)
            hooks.callback(module.register_forward_hook(keep).remove)
        for name, module in named.items():
            if name.endswith("shared_expert_gate"):
                keep = partial(lambda name, _, given, output: gates.__setitem__(name, output.sigmoid()), name)
                hooks.callback(module.register_forward_hook(keep).remove)
        found = states(model)
    added = defaultdict(float)
    for name, (_, place) in modules.items():
        value = outputs[name] * gates.get(f"{name.removesuffix('.down_proj')}_gate", 1.0)
        for norm in place.norms:
            value = named[norm.removeprefix(model.anatomy.trunk).removesuffix(".weight")](value)
        added[place.block, place.part] = added[place.block, place.part] + value.reshape(-1, *TOKENS.shape[1:], WIDTH)
    before = found["embed"]
    torch.testing.assert_close(added[None, Part.EMBED], before)
    for block in range(model.anatomy.blocks):
        for part, point in ((Part.ATTENTION, f"block.{block}.mid"), (Part.MLP, f"block.{block}")):
            after = found[point]
            torch.testing.assert_close(added[block, part], after - before, rtol=1e-5, atol=1e-5)
            before = after


def test_output_norms_scale_by_the_gain_that_is_folded(model):
    """norm(z) = γ ⊙ z / rms(z), γ as the table says it is stored."""
    modules = dict(model.trunk.named_modules())
    for place in model.anatomy.writers().values():
        for norm in place.norms:
            assert model.anatomy.places[norm].role is Role.OUTPUT_NORM
            z = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
            given = modules[norm.removeprefix(model.anatomy.trunk).removesuffix(".weight")](z)
            expected = gains(model, place) * z.double() / z.double().square().mean(1, keepdim=True).sqrt()
            torch.testing.assert_close(given.double(), expected, rtol=1e-4, atol=1e-5)


def test_readers_have_the_stream_on_their_axis(model):
    views = parameter_views(model)
    for name, place in model.anatomy.places.items():
        if place.role in (Role.READS_RESIDUAL, Role.UNEMBED) and name in views:
            assert views[name].shape[place.axis] == model.anatomy.width, name


def test_the_readers_axis_is_the_declared_one(model):
    """What the readers hold for a coordinate that every norm before them clears does not matter."""
    with changed(model, Role.NORM, Role.READS_RESIDUAL, Role.UNEMBED) as (views, places):
        for name, place in places.items():
            if place.role is Role.NORM:
                views[name][3] = 0.0 if name.endswith("bias") else -model.anatomy.family.gain
        before = model.model(TOKENS).logits
        for name, place in places.items():
            if place.role is not Role.NORM:
                views[name].select(place.axis, 3).add_(1.0)
        assert torch.equal(model.model(TOKENS).logits, before)
        for name, place in places.items():
            if place.role is Role.READS_RESIDUAL:
                views[name].select(place.axis, 4).add_(1.0)
        assert not torch.equal(model.model(TOKENS).logits, before)
