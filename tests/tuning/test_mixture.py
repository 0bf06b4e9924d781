"""A mixture computes the merged model, and the gradients of its coefficients; afterwards the model is as it was."""

import pytest
import torch

from surgeon.runtime.names import parameter_views
from surgeon.tuning.grain import GRAINS, free
from surgeon.tuning.mixture import Changes, Factors, Mixture, linears
from tests.support.family_toys import TOKENS, loaded, toy

#: Where tensors lie in memory otherwise than on disk, or are shared: (family, tied).
FAMILIES = [("llama", True), ("gpt2", False), ("qwen3_moe", False), ("qwen3_moe fused", False)]


def random(shape, seed):
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def judged(model):
    return model.model(TOKENS, use_cache=False).logits.log_softmax(-1)[:, -1, 7].sum()


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def model(request, tmp_path_factory: pytest.TempPathFactory):
    name, tied = request.param
    return loaded(toy(tmp_path_factory.mktemp("toy"), name, tied))


def dense(model, only=None):
    views = parameter_views(model)
    names = [name for name in views if only is None or name in only]
    changes = {name: [random(views[name].shape, seed), random(views[name].shape, -seed - 1)] for seed, name in
               enumerate(names)}  # fmt: skip
    return changes, {name: tuple(views[name].shape) for name in names}


def begun(grain, shapes, model):
    held = free(grain, shapes, model.anatomy, [0.5, -0.3], torch.device("cpu"))
    with torch.no_grad():
        for number, leaf in enumerate(held.leaves.values()):
            leaf += random(leaf.shape, number + 50)
    return held


def merged(model, changes, held):
    """The logits of the model with its tensors written by hand."""
    views = parameter_views(model)
    kept = {name: views[name].clone() for name in changes}
    with torch.no_grad():
        for name, (one, other) in changes.items():
            own = held.of(name)
            views[name].add_(own[0] * one + own[1] * other)
        logits = model.model(TOKENS, use_cache=False).logits
        for name, value in kept.items():
            views[name].copy_(value)
    return logits


@pytest.mark.parametrize("grain", GRAINS)
def test_it_is_the_merged_model_and_leaves_none_behind(model, grain):
    changes, shapes = dense(model)
    held = begun(grain, shapes, model)
    before = model.model(TOKENS, use_cache=False).logits
    with Mixture(model, Changes({}, changes), held):
        found = model.model(TOKENS, use_cache=False).logits
    torch.testing.assert_close(found, merged(model, changes, held), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.model(TOKENS, use_cache=False).logits, before)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


@pytest.mark.parametrize("grain", ["model", "row"])
def test_gradients_are_those_of_small_steps(model, grain):
    changes, shapes = dense(model)
    changes = {name: [0.1 * change for change in held] for name, held in changes.items()}
    held = begun(grain, shapes, model)
    with Mixture(model, Changes({}, changes), held) as mixture:
        judged(model).backward()
        mixture.collect()
    gradients = {name: leaf.grad.clone() for name, leaf in held.leaves.items()}
    size = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    sides = []
    for step in (0.02, -0.04):
        with torch.no_grad():
            for name, leaf in held.leaves.items():
                leaf += step * gradients[name] / size
            with Mixture(model, Changes({}, changes), held):
                sides.append(judged(model))
    assert (sides[0] - sides[1]) / 0.04 == pytest.approx(float(size), rel=0.03)


@pytest.mark.parametrize("name", ["llama with biases", "gpt2"])
def test_factors_do_what_their_product_does(name, tmp_path):
    model = loaded(toy(tmp_path / "toy", name))
    layers = linears(model, parameter_views(model))
    layers.pop(model.anatomy.unembed, None)
    transposed = name == "gpt2"
    factors, products, shapes = {}, {}, {}
    for seed, (tensor, layer) in enumerate(layers.items()):
        shape = tuple(layer.weight.shape)
        out, into = reversed(shape) if transposed else shape
        low = [Factors(random((3, into), seed), random((out, 3), seed + 100)) for seed in (2 * seed, 2 * seed + 1)]
        whole = [one.b @ one.a for one in low]
        factors[tensor], shapes[tensor] = low, shape
        products[tensor] = [one.T if transposed else one for one in whole]
    found = []
    for changes in (Changes(factors, {}), Changes({}, products)):
        held = begun("row", shapes, model)
        with Mixture(model, changes, held) as mixture:
            total = judged(model)
            total.backward()
            mixture.collect()
        found.append((total.detach(), {name: leaf.grad for name, leaf in held.leaves.items()}))
    assert len(layers) == (8 if transposed else 14)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_rows_are_those_of_the_outputs(tmp_path):
    wanted = {
        "llama": {"model.layers.0.self_attn.q_proj.weight": (2, 32, 1), "model.embed_tokens.weight": (2, 1, 32),
                  "model.layers.0.mlp.down_proj.weight": (2, 32, 1), "model.layers.0.mlp.up_proj.weight": (2, 48, 1),
                  "lm_head.weight": (2, 64, 1), "model.norm.weight": (2, 32)},
        "gpt2": {"transformer.h.0.attn.c_attn.weight": (2, 1, 96), "transformer.h.0.mlp.c_fc.weight": (2, 1, 128),
                 "transformer.h.0.mlp.c_proj.weight": (2, 1, 32), "transformer.h.0.mlp.c_proj.bias": (2, 32)},
    }  # fmt: skip
    for name, expected in wanted.items():
        model = loaded(toy(tmp_path / name, name))
        held = free("row", dense(model)[1], model.anatomy, [1.0, 1.0], torch.device("cpu"))
        assert {tensor: tuple(held.of(tensor).shape) for tensor in expected} == expected
