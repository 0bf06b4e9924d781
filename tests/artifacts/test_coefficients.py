"""Coefficients: any band of rows is that of the whole, whatever their shape; what does not fit is told beforehand."""

import pytest
import torch

import surgeon
from surgeon.artifacts.coefficients import Coefficients, coefficients
from surgeon.artifacts.kinds import open_artifact

MODELS = ("a", "b")


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(12, 7), (3, 4, 7), (12,), ()])
def test_a_band_of_rows_is_a_part_of_the_whole(shape):
    stack = random(2, *shape)
    axes = [[1, length] for length in shape]
    options = (
        [()] + [tuple(own) for own in torch.cartesian_prod(*map(torch.tensor, axes)).tolist()]
        if len(shape) > 1
        else [(), shape]
    )
    for own in options:
        held = coefficients({"w": random(2, *own)}, MODELS)
        assert held.misfit("w", shape, MODELS) is None
        whole = held.tensors["w"].reshape(2, *(own or [1] * len(shape))) * stack
        rows = whole.numel() // 2 // (shape[-1] if len(shape) > 1 else 1)
        banded = whole.reshape(2, rows, -1) if len(shape) > 1 else whole.reshape(2, rows)
        parts = stack.reshape(banded.shape)
        for band in (slice(0, rows), slice(rows // 3, rows // 2 + 1)):
            got = held.at("w", shape, band, MODELS).over(parts[:, band]) * parts[:, band]
            assert torch.equal(got, banded[:, band])


def test_models_are_told_by_name():
    held = coefficients({"w": torch.tensor([1.0, 2.0])}, MODELS)
    assert held.at("w", (3, 3), slice(0, 3), ("b", "a")).over(random(2, 3, 3)).flatten().tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("labels", "tensor", "shape", "said"),
    [
        (("a", "c"), "w", (3, 4), "of a, b, not of a, c"),
        (("a", "a"), "w", (3, 4), "not of a, a"),
        (("a", "b"), "v", (3, 4), "nothing for v"),
        (("a", "b"), "w", (4, 4), r"\[2, 3, 1\], and the tensor \[4, 4\]"),
        (("a", "b"), "w", (3,), "and the tensor"),
        (("a", "b"), "bad", (3, 4), "NaN"),
    ],
)
def test_what_does_not_fit_is_told(labels, tensor, shape, said):
    held = coefficients({"w": random(2, 3, 1), "bad": torch.tensor([1.0, float("nan")])}, MODELS)
    fault = held.misfit(tensor, shape, labels)
    assert fault is not None
    with pytest.raises(surgeon.MismatchError, match=said):
        raise fault


def test_a_file_says_what_it_is(tmp_path):
    held = coefficients({"w": random(2, 3, 1)}, MODELS, per="row")
    held.save(tmp_path / "c.safetensors")
    read = open_artifact(tmp_path / "c.safetensors")
    assert isinstance(read, Coefficients)
    assert read == held
    assert read.models == MODELS
