"""What stands beside the language model: draft heads and vision towers keep their bytes, projectors are edited."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.anatomy.family import Role
from surgeon.artifacts.direction import direction
from surgeon.runtime.points import capture
from surgeon.space.editing_api import edit
from tests.support.family_toys import IMAGE, TOKENS, WIDTH, loaded, toy

ROWS = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(4))
SEEING = ["gemma3 that sees", "llava", "qwen2_vl", "qwen2_5_vl"]


def applied(folder, out, **given):
    expr = edit("ablate", surgeon.open(folder), directions=direction(ROWS, at="block.0"), **given)
    surgeon.apply(expr, out)
    return load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def add(folder, tensors):
    save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors", {"format": "pt"})


def left(states):
    basis = torch.linalg.qr(ROWS.double().T).Q
    return {point: ((h.double() @ basis).abs().max() / h.abs().max()).item() for point, h in states.items()}


@pytest.mark.parametrize("prefix", ["mtp.layers.0.", "model.mtp_layers.0.", "model.layers.2."])
def test_a_draft_head_keeps_its_bytes(prefix, tmp_path):
    """Also one that is numbered as the layer behind the last."""
    folder = toy(tmp_path / "toy", "deepseek_v3" if "layers.2" in prefix else "llama")
    before = load_file(folder / "model.safetensors")
    layer = {name: value for name, value in before.items() if ".layers.1." in name}
    draft = {prefix + name.partition(".layers.1.")[2]: value + 1 for name, value in layer.items()}
    draft |= {f"{prefix}eh_proj.weight": torch.ones(WIDTH, 2 * WIDTH), f"{prefix}enorm.weight": torch.ones(WIDTH)}
    add(folder, draft)
    before, after = applied(folder, tmp_path / "out")
    assert before.keys() == after.keys()
    assert not changed(before, after) & draft.keys()
    assert len(changed(before, after)) > 4
    model = loaded(tmp_path / "out")
    with capture(model, model.anatomy.points()) as states, torch.no_grad():
        model.model(TOKENS)
    assert max(left(states).values()) < 1e-5
    assert set(draft) <= set(model.anatomy.aside())
    told = surgeon.plan(edit("ablate", surgeon.open(folder), directions=direction(ROWS, at="block.0"))).explain()
    assert f"{len(draft)} tensors beside the language model stay as they are" in told


def with_an_image(model):
    """Inputs in which an image takes the place of some tokens."""
    kind = model.model.config.model_type
    pixels = torch.Generator().manual_seed(6)
    if kind.startswith("qwen"):
        tokens = torch.cat([torch.full((1, 4), IMAGE), TOKENS[:1]], dim=1)
        patches = torch.randn(16, 3 * 4 * 4, generator=pixels)
        given = {"input_ids": tokens, "pixel_values": patches, "image_grid_thw": torch.tensor([[1, 4, 4]])}
        return given | {"mm_token_type_ids": (tokens == IMAGE).long()}
    count = 4 if kind == "gemma3" else 16
    tokens = torch.cat([torch.full((1, count), IMAGE), TOKENS[:1]], dim=1)
    given = {"input_ids": tokens, "pixel_values": torch.randn(1, 3, 16, 16, generator=pixels)}
    return given | ({"token_type_ids": (tokens == IMAGE).long()} if kind == "gemma3" else {})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", SEEING)
def test_what_an_image_becomes_is_edited_and_how_it_is_seen_is_not(name, tied, tmp_path):
    folder = toy(tmp_path / "toy", name, tied)
    before, after = applied(folder, tmp_path / "out")
    model = loaded(tmp_path / "out")
    touched = changed(before, after)
    assert touched == {n for n, p in loaded(folder).anatomy.places.items() if p.role is Role.WRITES_RESIDUAL}
    assert any("projector" in name or "merger" in name for name in touched)
    assert not any("tower" in name or "visual.blocks" in name for name in touched)
    with capture(model, model.anatomy.points()) as states, torch.no_grad():
        model.model(**with_an_image(model))
    assert {point: value for point, value in left(states).items() if value >= 1e-5} == {}
    original = loaded(folder)
    with capture(original, original.anatomy.points()) as states, torch.no_grad():
        original.model(**with_an_image(original))
    assert all(value > 1e-2 for value in left(states).values())


@pytest.mark.parametrize("name", ["gemma3 that sees", "llava"])
def test_names_of_the_disk_stay_those_of_transformers_5_too(name, tmp_path):
    folder, renamed = toy(tmp_path / "toy", name), {}
    for key, value in load_file(folder / "model.safetensors").items():
        key = key.replace("language_model.model.", "language_model.", 1)
        renamed["lm_head.weight" if key == "language_model.lm_head.weight" else f"model.{key}"] = value
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    before, after = applied(folder, tmp_path / "out")
    assert before.keys() == after.keys() == renamed.keys()
    assert "model.language_model.embed_tokens.weight" in changed(before, after)
    model = loaded(tmp_path / "out")
    with capture(model, model.anatomy.points()) as states, torch.no_grad():
        model.model(**with_an_image(model))
    assert max(left(states).values()) < 1e-5
