"""Grams are XᵀX/n of what the layers read, shared where they read the same, in a file that is whole or not there."""

from pathlib import Path

import pytest
import torch

from surgeon.artifacts.gram import Gram
from surgeon.calibration.gram import measure_grams
from surgeon.calibration.linear import linear_layers
from surgeon.calibration.samples import samples
from surgeon.errors import RefusedError, RunError
from surgeon.runtime.load import load
from surgeon.runtime.text import Encoded
from tests.support.family_toys import TOKENS, toy

ROWS = [Encoded(row, 4) for row in TOKENS.tolist()]


def read_by(model, module, encoded) -> torch.Tensor:
    """What a layer reads over whole passes, the first token too, float64."""
    seen = []
    hook = module.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].double()))
    with torch.no_grad():
        for one in encoded:
            model(torch.tensor([one.ids]))
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("layers", [1, 2, 99])
def test_every_linear_layer_of_a_chat_model(loaded, encoded, tmp_path: Path, layers: int):
    gram = measure_grams(loaded, encoded, tmp_path / "g.safetensors", layers=layers, name="tiny")
    modules = {name: module for name, module in loaded.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {f"{name}.weight" for name in modules if name != "lm_head"} == gram.places.keys()
    for name, module in modules.items():
        if name != "lm_head":
            place = gram.places[f"{name}.weight"]
            seen = read_by(loaded.model, module, encoded)
            torch.testing.assert_close(
                gram.tensors[place.entry].double(), seen.T @ seen / len(seen), rtol=1e-4, atol=1e-6
            )
    assert gram.about["tokens"] == sum(len(one.ids) for one in encoded)
    assert gram.about["name"] == "tiny"


def test_layers_that_read_the_same_share_an_entry(loaded, encoded, tmp_path: Path):
    gram = measure_grams(loaded, encoded[:1], tmp_path / "g.safetensors")
    of = {name: place.entry for name, place in gram.places.items()}
    at = "model.layers.1."
    assert len({of[f"{at}self_attn.{part}_proj.weight"] for part in "qkv"}) == 1
    assert of[f"{at}mlp.gate_proj.weight"] == of[f"{at}mlp.up_proj.weight"] != of[f"{at}mlp.down_proj.weight"]
    assert len(gram.tensors) == 4 * len(loaded.blocks)


def test_how_many_blocks_at_once_does_not_matter(loaded, encoded, tmp_path: Path):
    for layers in (1, 3):
        measure_grams(loaded, encoded, tmp_path / f"{layers}.safetensors", layers=layers)
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "3.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "qwen3", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
def test_families(tmp_path: Path, name: str, tied: bool):
    """Conv1D's input is its last axis but one; a head of its own has a Gram, a tied one has none."""
    model = load(toy(tmp_path / "toy", name, tied=tied), device="cpu")
    gram = measure_grams(model, ROWS, tmp_path / "g.safetensors")
    held = {layer.entry: layer for layer in linear_layers(model, ROWS[0].ids)}
    for layer in held.values():
        seen = read_by(model.model, layer.module, ROWS)
        torch.testing.assert_close(gram.tensors[layer.entry].double(), seen.T @ seen / len(seen), rtol=1e-4, atol=1e-5)
    axes = {place.axis for name, place in gram.places.items() if name != "lm_head.weight"}
    assert axes == ({-2} if name == "gpt2" else {-1})
    assert ("lm_head.weight" in gram.places) is not tied


def test_experts_held_as_one_array_have_none(tmp_path: Path):
    model = load(toy(tmp_path / "toy", "mixtral"), device="cpu")
    gram = measure_grams(model, ROWS, tmp_path / "g.safetensors")
    assert any("self_attn" in name for name in gram.places)
    assert not any("experts" in name for name in gram.places)


def test_a_failure_leaves_no_file(loaded, encoded, tmp_path: Path):
    with torch.no_grad():
        loaded.blocks[1].mlp.up_proj.weight[0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        measure_grams(loaded, encoded, tmp_path / "g.safetensors")
    assert list(tmp_path.iterdir()) == []
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_a_file_is_read_entry_by_entry(loaded, encoded, tmp_path: Path):
    path = tmp_path / "g.safetensors"
    measure_grams(loaded, encoded[:2], path)
    gram = Gram.load(path)
    assert gram.fault("model.layers.0.mlp.down_proj.weight", (96, 256)) is None
    assert "needs [255, 255]" in (gram.fault("model.layers.0.mlp.down_proj.weight", (96, 255)) or "")
    again = Gram(dict(gram.tensors), gram.about)
    assert again == gram


def test_samples(loaded):
    """A given answer stays, a missing one is the model's own, a text stands as it is."""
    given, own, text = samples(
        loaded,
        [
            {"prompt": "Repeat the word sun.", "response": "[moon]"},
            {"prompt": "Repeat the word sun."},
            {"text": "a b c"},
        ],
    )
    assert loaded.tokenizer.decode(given.response) == "[moon]"
    assert own.ids[: own.prompt] == given.ids[: given.prompt]
    assert len(own.ids) > own.prompt
    assert text.response == []
    assert samples(loaded, [{"prompt": "Repeat the word sun."}], answer=0)[0].response == []
    with pytest.raises(RefusedError, match="no prompt"):
        samples(loaded, [])
