"""Small Llamas whose weights are quantised by the libraries whose formats these are."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

from surgeon.testing.toys import toy_llama

WIDTH = 256
SHAPE = {"hidden_size": WIDTH, "intermediate_size": 384, "head_dim": 64, "num_hidden_layers": 2}


def full(folder: Path, seed: int = 0, **config) -> Path:
    """A Llama of whole 128 × 128 blocks in bf16."""
    return toy_llama(folder, seed, dtype=torch.bfloat16, **{**SHAPE, **config})


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def _quantizer(block, scale_fmt):
    settings = SimpleNamespace(weight_block_size=block, scale_fmt=scale_fmt)
    return SimpleNamespace(quantization_config=settings)


def block_quantised(weight, block=(128, 128), scale_fmt=None):
    """Codes and scales, by transformers."""
    made = Fp8Quantize(_quantizer(block, scale_fmt)).convert({"x.weight": weight})
    return made["x.weight"], made["x.weight_scale_inv"]


def block_dequantised(codes, scale):
    """The weight in float32, by transformers."""
    return Fp8Dequantize(_quantizer(None, None))._dequantize_one(codes, scale, torch.float32)


def rewrite(folder: Path, tensors, **config):
    """Other tensors in a model's folder, and other keys in its config."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    found = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(found))
    return folder


def tensors_of(folder: Path):
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        found |= load_file(file)
    return found


def fp8_block(folder: Path, seed: int = 0, *, block=(128, 128), scale_fmt=None, scale_dtype=None, **config) -> Path:
    """As DeepSeek and Qwen3 store it."""
    tensors = {}
    for name, value in tensors_of(full(folder, seed, **config)).items():
        if is_linear(name):
            tensors[name], scale = block_quantised(value, block, scale_fmt)
            tensors[f"{name}_scale_inv"] = scale.to(scale_dtype) if scale_dtype else scale
        else:
            tensors[name] = value
    about = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": list(block)}
    about |= {"scale_fmt": scale_fmt} if scale_fmt else {}
    return rewrite(folder, tensors, quantization_config=about)


def fp8_compressed(folder: Path, seed: int = 0, *, per: str = "channel") -> Path:
    """As compressed-tensors stores float-quantized: one scale a row or a tensor, in bf16."""
    tensors = {}
    for name, value in tensors_of(full(folder, seed)).items():
        if is_linear(name):
            wide = value.float()
            largest = wide.abs().amax(1, keepdim=True) if per == "channel" else wide.abs().amax().reshape(1)
            scale = (largest / 448).to(torch.bfloat16)
            tensors[name] = (wide / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale"] = scale
        else:
            tensors[name] = value
    weights = {"num_bits": 8, "type": "float", "strategy": per, "symmetric": True, "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    about = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
             "quantization_status": "compressed", "config_groups": {"group_0": group}}  # fmt: skip
    return rewrite(folder, tensors, quantization_config=about)


def read_in_full(folder: Path):
    """The tensors as they are meant, float32, worked out here from codes and scales."""
    stored = tensors_of(folder)
    found = {}
    for name, value in stored.items():
        scale = stored.get(f"{name}_scale_inv", stored.get(f"{name}_scale"))
        if value.dtype == torch.float8_e4m3fn:
            found[name] = block_dequantised(value, scale) if scale.numel() > len(value) or scale.ndim == 2 else (
                value.float() * scale.float())  # fmt: skip
        elif not name.endswith(("_scale_inv", "_scale")):
            found[name] = value.float()
    return found
