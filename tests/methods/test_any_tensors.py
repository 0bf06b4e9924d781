"""The methods on models of every kind: what transformers and diffusers write at toy size, merged, loads again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import surgeon
from surgeon.artifacts.artifact import Artifact
from surgeon.space.registry import merge_methods
from surgeon.testing.toys import read_checkpoint

diffusers = pytest.importorskip("diffusers", reason="diffusion layouts need diffusers")

WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def whisper() -> Any:
    parts = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    ffn = {f"{part}_ffn_dim": 24 for part in ("encoder", "decoder")}
    ids = {f"{token}_token_id": 0 for token in ("pad", "bos", "eos", "decoder_start")}
    return WhisperForConditionalGeneration(WhisperConfig(vocab_size=40, d_model=16, max_source_positions=16,
                                                         max_target_positions=16, **parts, **ffn, **ids))  # fmt: skip


def unet() -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


KINDS: dict[str, Callable[[], Any]] = {
    "vit": lambda: ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **WIDE)),
    "whisper": whisper,
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    ),
    "bert": lambda: BertModel(BertConfig(vocab_size=40, **WIDE)),
    "clip": lambda: CLIPTextModel(CLIPTextConfig(vocab_size=40, projection_dim=8, **WIDE)),
    "unet": unet,
    "dit": lambda: diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, norm_num_groups=4,
        num_embeds_ada_norm=10,
    ),
    "vae": lambda: diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[type, list[Path]]:
    """The class, and a base with two fine-tunes of it on disk."""
    torch.manual_seed(0)
    model, root = KINDS[request.param](), tmp_path_factory.mktemp(request.param)
    written = []
    for name in ("base", "one", "two"):
        model.save_pretrained(root / name)
        written.append(root / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return type(model), written


def floats(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in read_checkpoint(folder).items() if value.is_floating_point()}


def test_any_model_is_merged_and_loads(folders, tmp_path):
    kind, (base, one, two) = folders
    merged = surgeon.merge("task_arithmetic", [surgeon.open(one), surgeon.open(two)], base_model=surgeon.open(base),
                           weight=[0.3, 0.6])  # fmt: skip
    surgeon.apply(merged, tmp_path / "out")
    start, first, second, found = map(floats, (base, one, two, tmp_path / "out"))
    assert found.keys() == start.keys()
    for name, value in start.items():
        wanted = value + 0.3 * (first[name] - value) + 0.6 * (second[name] - value)
        assert torch.allclose(found[name], wanted, atol=1e-6), name
    loaded = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loaded[1]["missing_keys"] and not loaded[1]["unexpected_keys"]
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {file.name for file in base.iterdir()}


@pytest.mark.parametrize("method", merge_methods())
def test_every_method_takes_convolutions_and_vectors(folders, method, tmp_path):
    """Whatever the axes of a tensor, each method gives one of its shape, without NaN."""
    found = merge_methods()[method]
    if any(issubclass(parameter.type, Artifact) for parameter in found.parameters.values()):
        pytest.skip("needs what is measured on data")
    _, (base, *tuned) = folders
    low, high = found.models
    models = [surgeon.open(folder) for folder in tuned[: high or max(low, 2)]]
    based = {"base_model": surgeon.open(base)} if found.needs_base else {}
    given = {name: 0.5 for name, parameter in found.parameters.items() if parameter.required}
    surgeon.apply(surgeon.merge(method, models, **based, **given), tmp_path / "out")
    start, merged = floats(base), floats(tmp_path / "out")
    assert {name: value.shape for name, value in merged.items()} == {name: value.shape for name, value in start.items()}
    assert all(value.isfinite().all() for value in merged.values())


def test_block_weights_by_targets(folders, tmp_path):
    """Half of the parts of a network from one model, half from another: what block-weighted merging means."""
    _, (_, one, two) = folders
    names = list(floats(one))
    pattern = "*.weight"
    rules = f"[{{targets: '{pattern}', value: 1}}, {{value: 0}}]"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"surgeon: 1\nmodels: {{one: {one}, two: {two}}}\nsteps:\n  mixed:\n    combine: one + w*(two - one)\n"
        f"    schedules: {{w: {rules}}}\n"
    )
    surgeon.apply(recipe, tmp_path / "out")
    first, second, found = map(floats, (one, two, tmp_path / "out"))
    for name in names:
        assert torch.equal(found[name], (second if name.endswith(".weight") else first)[name]), name
