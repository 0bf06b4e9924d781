"""Tiny checkpoints made on the spot: Llama-shaped, loadable by transformers, random but with structure to see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 32,
    "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3, "head_dim": 8,
    "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}  # fmt: skip


def llama_shapes(config: Mapping[str, Any] = CONFIG) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama checkpoint of this config, as on disk."""
    d, ff, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, kv = (config["head_dim"] * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, d)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.q_proj.weight": (q, d), f"{at}self_attn.o_proj.weight": (d, q)}
        shapes |= {f"{at}self_attn.{part}_proj.weight": (kv, d) for part in "kv"}
        shapes |= {f"{at}mlp.{part}_proj.weight": (ff, d) for part in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (d, ff), f"{at}input_layernorm.weight": (d,)}
        shapes[f"{at}post_attention_layernorm.weight"] = (d,)
    return shapes


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], seed: int, scale: float = 0.2, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Normal weights; vectors (norm gains) lie around 1."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}
    return {name: (value + (value.ndim == 1)).to(dtype) for name, value in drawn.items()}


def write_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = CONFIG, shards: int = 1
) -> Path:
    """Write tensors as one file, or as shards with an index, with a config beside them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names, weight_map = sorted(tensors), {}
    for number in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save_file({name: tensors[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(dict(config), indent=2))
    return folder


def toy_llama(
    folder: Path, seed: int = 0, *, base: Path | None = None, shards: int = 1, dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:  # fmt: skip
    """A toy Llama folder; with `base`, a fine-tune of it: its tensors plus a little noise."""
    merged = CONFIG | {"torch_dtype": str(dtype).removeprefix("torch.")} | config
    tensors = random_tensors(llama_shapes(merged), seed, dtype=dtype)
    if base is not None:
        generator = torch.Generator().manual_seed(seed)
        for name, value in read_checkpoint(base).items():
            tensors[name] = (value.float() + 0.01 * torch.randn(value.shape, generator=generator)).to(dtype)
    return write_checkpoint(folder, tensors, merged, shards)


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, by name."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors
