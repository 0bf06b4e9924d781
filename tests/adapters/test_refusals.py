"""Adapters where they have nothing to stand on, or stand on the wrong thing: refused before anything is read."""

import pytest
import torch
from safetensors.torch import save_file

import surgeon
from surgeon import MismatchError
from surgeon.testing.toys import read_checkpoint, toy_llama
from tests.support.peft_toys import llama, make

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "RuntimeWarning")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    config = {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["model.norm"]}
    return make(tmp_path_factory.mktemp("made"), llama(), **config)


def refused(expr, tmp_path, match):
    with pytest.raises(MismatchError, match=match) as caught:
        surgeon.apply(expr, tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []
    return caught.value


@pytest.mark.parametrize("scale", [1, 0.5])
def test_an_adapter_alone_is_no_model(made, tmp_path, scale):
    error = refused(scale * surgeon.open(made.adapter), tmp_path, "an adapter, a difference without a model")
    assert error.hint == "write base + 1*adapter"


def test_two_adapters_alone_are_no_model(made, tmp_path):
    one, two = surgeon.open(made.adapter), surgeon.open(made.adapter, base_model=surgeon.open(made.base))
    refused(0.5 * one + 0.5 * two, tmp_path, "without a model")


def test_an_adapter_alone_on_a_stated_base_is_no_model(made, tmp_path):
    stated = surgeon.open(made.adapter, base_model=surgeon.open(made.base))
    refused(stated, tmp_path, "sum to 0; a model needs 1")


def test_an_adapter_that_cancels_its_base(made, tmp_path):
    base = surgeon.open(made.base)
    refused(base - base + surgeon.open(made.adapter), tmp_path, "without a model")


def test_linear_has_no_base_to_add_an_adapter_to(made, tmp_path):
    merge = surgeon.merge("linear", [surgeon.open(made.base), surgeon.open(made.adapter)], weight=0.5)
    refused(merge, tmp_path, "without a model")


def misfits(error):
    """The tensors that a message lists."""
    lines = [line.strip() for line in str(error).splitlines()[1:]]
    return sorted(line.partition(":")[0] for line in lines if line.startswith("model."))


def test_an_adapter_for_another_base_lists_every_tensor(made, tmp_path):
    """Other shapes, and a layer that the other base does not have."""
    toy_llama(tmp_path / "other", num_hidden_layers=1, vocab_size=20)
    error = refused(surgeon.open(tmp_path / "other") + surgeon.open(made.adapter), tmp_path, "does not fit other; 5 te")
    places = [f"model.layers.{i}.{part}" for i in (0, 1) for part in ("mlp.up_proj.weight", "self_attn.q_proj.weight")]
    assert misfits(error) == [*places, "model.norm.weight"]
    assert "for another base" in error.hint


def test_an_adapter_for_another_base_in_a_merge(made, tmp_path):
    other = surgeon.open(toy_llama(tmp_path / "other", vocab_size=20))
    merge = surgeon.merge("task_arithmetic", [surgeon.open(made.adapter)], base_model=other)
    refused(merge, tmp_path, "does not fit other; 5 tensor")


def renamed_copy(made, folder, rename):
    """The base again with other tensor names."""
    folder.mkdir()
    tensors = {rename(name): tensor for name, tensor in read_checkpoint(made.base).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return surgeon.open(folder)


def test_a_stated_base_with_other_names_never_drops_the_adapter(made, tmp_path):
    """The adapter fits the base it states, whose tensors the sum does not have."""
    stated = renamed_copy(made, tmp_path / "stated", lambda name: name.removeprefix("model."))
    adapter = surgeon.open(made.adapter, base_model=stated)
    refused(surgeon.open(made.base) + adapter, tmp_path, r"base and adapter do not fit together.*\n.*only in")
    merge = surgeon.merge("task_arithmetic", [adapter], base_model=surgeon.open(made.base))
    refused(merge, tmp_path, "base and adapter do not fit together")


def test_a_stated_base_with_other_shapes(made, tmp_path):
    other = surgeon.open(toy_llama(tmp_path / "other", vocab_size=20))
    adapter = surgeon.open(made.adapter, base_model=surgeon.open(made.base))
    refused(other + adapter, tmp_path, "other and adapter do not fit together")


def test_a_stated_base_that_is_no_model(made, tmp_path):
    base, adapter = surgeon.open(made.base), surgeon.open(made.adapter)
    refused(base + surgeon.open(made.adapter, base_model=adapter), tmp_path, "without a model")
    nothing = surgeon.open(made.adapter, base_model=base - surgeon.open(toy_llama(tmp_path / "other")))
    refused(base + nothing, tmp_path, "do not fit together")
    doubled = surgeon.open(made.adapter, base_model=2 * base)
    refused(base + doubled, tmp_path, "sum to 2; a model needs 1")


def test_a_task_vector_of_other_models_in_a_merge(made, tmp_path):
    one, two = (surgeon.open(toy_llama(tmp_path / name, seed)) for seed, name in enumerate(("one", "two")))
    merge = surgeon.merge("task_arithmetic", [two - one], base_model=surgeon.open(made.base))
    refused(merge, tmp_path, "do not fit together")


def test_a_tensor_that_is_not_a_float_is_not_adapted(made, tmp_path):
    folder = tmp_path / "integers"
    folder.mkdir()
    tensors = read_checkpoint(made.base)
    tensors["model.norm.weight"] = torch.ones(16, dtype=torch.int32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(surgeon.open(folder) + surgeon.open(made.adapter), tmp_path, r"model\.norm\.weight, which is I32")
