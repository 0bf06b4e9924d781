"""nuslerp, multislerp and karcher: golden numbers, theorems of the sphere, and what has no answer is refused."""

import math

import pytest
import torch
from safetensors.torch import load_file

import surgeon
from surgeon.methods.karcher import karcher
from surgeon.methods.multislerp import multislerp
from surgeon.methods.nuslerp import nuslerp
from surgeon.methods.slerp import slerp
from surgeon.space.schedule import Rule, Rules
from surgeon.testing.toys import write_checkpoint

A, B, C = torch.tensor([1.0, 0, 0]), torch.tensor([0.6, 0.8, 0]), torch.tensor([0, 0, 2.0])


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rotations(n, m):
    return torch.linalg.qr(random(n, n, seed=1).double()).Q, torch.linalg.qr(random(m, m, seed=2).double()).Q


def log(at, to):
    """The arc from one unit vector to another."""
    cosine = float(at @ to)
    flat = to - cosine * at
    return flat / flat.norm() * math.acos(max(-1.0, min(1.0, cosine)))


@pytest.mark.parametrize("method", [nuslerp, multislerp])
def test_golden_arc(method):
    torch.testing.assert_close(method(torch.stack([A, B]), (0.75, 0.25)), torch.tensor([0.973249, 0.229753, 0]))


def test_golden_karcher():
    expected = torch.tensor([1.015828, 0.507914, 0.698494])
    torch.testing.assert_close(karcher(torch.stack([A, B, C])), expected, rtol=0, atol=1e-6)
    turned = karcher(torch.stack([C, A, B]))
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-6)


def test_two_models_are_on_the_arc_whatever_the_method():
    pair = random(2, 40)
    unit = pair / pair.norm(dim=1, keepdim=True)
    for t in (0.0, 0.3, 1.0):
        expected = slerp(unit[0], unit[1:], t)
        torch.testing.assert_close(nuslerp(unit, (1 - t, t)), expected)
        torch.testing.assert_close(multislerp(unit, (1 - t, t)), expected)
        torch.testing.assert_close(karcher(unit, (1 - t, t)), expected)
    length = pair.double().norm(dim=1).mean()
    torch.testing.assert_close(karcher(pair).double().norm(), length, rtol=1e-6, atol=0)


def test_at_the_karcher_mean_the_arcs_cancel():
    models = random(5, 12, seed=3).double() + 1.0
    weights = (0.1, 0.4, 0.2, 0.2, 0.1)
    mean = karcher(models, weights)
    unit, at = models / models.norm(dim=1, keepdim=True), mean / mean.norm()
    left = sum(w * log(at, to) for w, to in zip(weights, unit, strict=True))
    assert left.norm() < 1e-11
    assert sum(w * log(unit[0], to) for w, to in zip(weights[1:], unit[1:], strict=True)).norm() > 0.1
    torch.testing.assert_close(mean.norm(), sum(w * x.norm() for w, x in zip(weights, models, strict=True)))


def test_the_first_step_of_karcher_is_multislerp():
    models = random(4, 30, seed=4)
    once = karcher(models, (0.4, 0.3, 0.2, 0.1), max_iter=1)
    torch.testing.assert_close(once, multislerp(models, (0.4, 0.3, 0.2, 0.1)))
    assert not torch.allclose(once, karcher(models, (0.4, 0.3, 0.2, 0.1)), rtol=1e-4)


def test_the_projection_is_the_mean_direction():
    models, weights = random(3, 30, seed=5).double(), (0.5, 0.3, 0.2)
    sums = sum(w * x / x.norm() for w, x in zip(weights, models, strict=True))
    length = sum(w * x.norm() for w, x in zip(weights, models, strict=True))
    projected = multislerp(models, weights, tangent="projection")
    torch.testing.assert_close(projected, sums / sums.norm() * length, rtol=1e-7, atol=1e-8)
    doubled = multislerp(models, tuple(2 * w for w in weights), normalize_weights=False)
    torch.testing.assert_close(doubled, 2 * multislerp(models, weights))


@pytest.mark.parametrize("name", ["nuslerp", "multislerp", "karcher"])
def test_turning_the_models_turns_the_result(name):
    left, right = rotations(6, 9)
    models = random(2 if name == "nuslerp" else 3, 6, 9).double()
    method = {"nuslerp": nuslerp, "multislerp": multislerp, "karcher": karcher}[name]
    weights = (0.5, 0.3, 0.2)[: len(models)]
    turned = method(left @ models @ right, weights)
    torch.testing.assert_close(turned, left @ method(models, weights) @ right)


@pytest.mark.parametrize("row_wise", [True, False])
def test_rows_and_columns_are_what_they_are_called(row_wise):
    pair = random(2, 5, 7)
    merged = nuslerp(pair, (0.4, 0.8), nuslerp_flatten=False, nuslerp_row_wise=row_wise)
    swapped = nuslerp(pair, (0.4, 0.8), nuslerp_flatten=False, nuslerp_row_wise=not row_wise, row_wise_means="columns")
    torch.testing.assert_close(swapped, merged, rtol=0, atol=0)
    for index in range(5 if row_wise else 7):
        part = pair[:, index] if row_wise else pair[:, :, index]
        own = nuslerp(part, (0.4, 0.8))
        torch.testing.assert_close(merged[index] if row_wise else merged[:, index], own)


@pytest.mark.parametrize("settings", [{"nuslerp_row_wise": True}, {}])
def test_rows_and_columns_of_a_tensor_of_many_tiles(tmp_path, settings):
    """The engine sees rows in tiles; a column runs through all of them, a vector has one of its own."""
    made = [{"w": random(700, 900, seed=seed), "v": random(300_000, seed=seed)} for seed in range(3)]
    a, b, c = (surgeon.open(write_checkpoint(tmp_path / str(i), each, None)) for i, each in enumerate(made))
    recipe = surgeon.merge("nuslerp", [b, c], base_model=a, weight=[1, 3], nuslerp_flatten=False, **settings)
    surgeon.apply(recipe, tmp_path / "out")
    out = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in out.items():
        vectors = torch.stack([made[1][name], made[2][name]]) - made[0][name]
        expected = made[0][name] + nuslerp(vectors, (1, 3), nuslerp_flatten=False, **settings)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


def test_without_a_base_the_models_themselves_are_merged(tmp_path):
    made = [{"w": random(4, 6, seed=seed)} for seed in range(3)]
    a, b, c = (surgeon.open(write_checkpoint(tmp_path / str(i), each, None)) for i, each in enumerate(made))

    def merged(**given):
        surgeon.apply(surgeon.merge("multislerp", [b, c], weight=1, **given), tmp_path / "out", overwrite=True)
        return load_file(tmp_path / "out" / "model.safetensors")["w"]

    pair = torch.stack([made[1]["w"], made[2]["w"]])
    torch.testing.assert_close(merged(), multislerp(pair, (1, 1)))
    torch.testing.assert_close(merged(base_model=a), made[0]["w"] + multislerp(pair - made[0]["w"], (1, 1)))
    with pytest.raises(surgeon.MismatchError, match="has no base to add it to"):
        surgeon.plan(surgeon.merge("multislerp", [b, c - a], weight=1))


OPPOSED = torch.stack([A, -2 * A])


@pytest.mark.parametrize(
    ("merged", "message"),
    [
        (lambda: nuslerp(OPPOSED, (1, 1)), "opposite directions"),
        (lambda: multislerp(OPPOSED, (1, 1)), "opposite directions"),
        (lambda: karcher(OPPOSED), "opposite directions"),
        (lambda: karcher(torch.stack([A, B, -A]), (0.45, 0.1, 0.449999)), None),
        (lambda: karcher(torch.stack([A, A, -A])), "opposite directions"),
        (lambda: nuslerp(torch.stack([A, B]), (0.5, -0.5)), "weights 0.5 and -0.5 cancel"),
        (lambda: multislerp(torch.stack([A, B]), (0.5, -0.5)), "weights 0.5, -0.5 cancel"),
        (lambda: karcher(torch.stack([A, B]), (0.0, 0.0)), "all weights are zero"),
        (lambda: nuslerp(torch.stack([A, B]).reshape(2, 3, 1), (1, 1), nuslerp_flatten=False), None),
    ],
)
def test_what_has_no_answer_is_refused(merged, message):
    if message is None:
        assert torch.isfinite(merged()).all()
        return
    with pytest.raises(ValueError, match=message):
        merged()


def test_opposite_models_are_refused_by_tensor_and_a_rule_helps(tmp_path):
    made = [{"w": random(4, 6), "gate": torch.tensor([sign])} for sign in (1.0, -3.0)]
    a, b = (surgeon.open(write_checkpoint(tmp_path / str(i), each, None)) for i, each in enumerate(made))
    with pytest.raises(surgeon.RunError, match=r"gate .*opposite directions.*opposite: linear"):
        surgeon.apply(surgeon.merge("karcher", [a, b]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rules = Rules((Rule("gate", "linear"), Rule(None, "refuse")))
    surgeon.apply(surgeon.merge("karcher", [a, b], opposite=rules), tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["gate"] == -1


@pytest.mark.parametrize("method", ["linear", "nuslerp", "multislerp"])
def test_weights_that_cancel_are_refused_before_anything_is_read(tmp_path, method):
    a, b = (surgeon.open(write_checkpoint(tmp_path / n, {"w": random(2, 2)}, None)) for n in "ab")
    with pytest.raises(surgeon.RefusedError, match=rf"w \({method}\): the weights 0.5.* -0.5 cancel"):
        surgeon.plan(surgeon.merge(method, [a, b], weight=[0.5, -0.5]))


def test_how_many_models(tmp_path):
    a, b, c = (surgeon.open(write_checkpoint(tmp_path / n, {"w": random(2, 2)}, None)) for n in "abc")
    with pytest.raises(surgeon.RefusedError, match="takes 2 model"):
        surgeon.plan(surgeon.merge("nuslerp", [a, b, c], weight=1))
    with pytest.raises(surgeon.RefusedError, match="at least 2 model"):
        surgeon.plan(surgeon.merge("model_stock", [b], base_model=a))
    with pytest.raises(surgeon.RefusedError, match="takes 1 model"):
        surgeon.plan(surgeon.merge("passthrough", [a, b]))
