"""Tensors as llama.cpp calls and holds them: the names of the gguf package, which transformers reads them back by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import MismatchError, RefusedError, nearest

#: Tensors that are no weights: what a checkpoint may hold and the file does not.
_LEFT_OUT = ("rotary_emb.inv_freq", "attn.masked_bias")


@dataclass(frozen=True)
class Architecture:
    """A family in llama.cpp: its name there, whether rotary rows are interleaved, what is added to norms' gains."""

    name: str
    interleaved: bool = False
    gain: float = 0.0


#: By the config's model_type.
ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "mistral": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma2": Architecture("gemma2", gain=1.0),
    "gemma3_text": Architecture("gemma3", gain=1.0),
}


def need_gguf() -> None:
    """RefusedError where the gguf package is not installed."""
    if find_spec("gguf") is None:
        raise RefusedError("writing GGUF needs the package gguf", hint="pip install 'model-surgeon[gguf]'")


@dataclass(frozen=True)
class Naming:
    """The names of one model's tensors; `config` is its config.json."""

    architecture: Architecture
    config: Mapping[str, Any]
    find: Callable[[str], str | None]

    def name(self, tensor: str) -> str | None:
        """A tensor's name in the file; None for what is left out. MismatchError where there is none."""
        if tensor.endswith(_LEFT_OUT):
            return None
        found = self.find(tensor)
        if found is None:
            raise MismatchError(f"{tensor} has no name in GGUF as a tensor of {self.architecture.name}")
        return found

    def value(self, tensor: str, values: Tensor) -> Tensor:
        """A tensor's values as llama.cpp computes with them."""
        if tensor.endswith("norm.weight") and self.architecture.gain:
            values = values + self.architecture.gain
        return self.rows(tensor, values)

    def rows(self, tensor: str, values: Tensor) -> Tensor:
        """Rows of queries and keys in the order of llama.cpp's rotation; of other tensors as they are."""
        part = tensor.rpartition(".")[0].rpartition(".")[2]
        if not self.architecture.interleaved or part not in ("q_proj", "k_proj"):
            return values
        kind = "num_attention_heads" if part == "q_proj" else "num_key_value_heads"
        heads = int(self.config.get(kind) or self.config["num_attention_heads"])
        halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
        return halves.transpose(1, 2).reshape(values.shape)


def naming(config: Mapping[str, Any]) -> Naming:
    """The names of a model. RefusedError where its family is not one of those written."""
    need_gguf()
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    kind = str(config.get("model_type", ""))
    if kind not in ARCHITECTURES:
        hint = f"known: {', '.join(ARCHITECTURES)}; {nearest(kind, ARCHITECTURES)}"
        raise RefusedError(f"models of the type {kind!r} are not written as GGUF", hint=hint)
    architecture = ARCHITECTURES[kind]
    arch = next(one for one in MODEL_ARCH if MODEL_ARCH_NAMES[one] == architecture.name)
    names = get_tensor_name_map(arch, int(config["num_hidden_layers"]))
    return Naming(architecture, config, lambda tensor: names.get_name(tensor, try_suffixes=(".weight", ".bias")))


#: What transformers' own reader leaves out: a key of the file behind the architecture's name → a key of config.json.
CONFIG_KEYS = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}

#: Layers of the two models of Gemma for which llama.cpp divides attention by the root of width / heads.
_BY_WIDTH = (46, 62)


def attention_scalar(layers: int, width: int, heads: int, head: int) -> int:
    """Whose root llama.cpp divides a Gemma's attention by: `query_pre_attn_scalar`."""
    return width // heads if layers in _BY_WIDTH else head


def rope_theta(config: Mapping[str, Any]) -> float:
    """The base of the rotation, in either style of config.json."""
    given = config.get("rope_parameters") or {}
    given = given.get("full_attention", given)
    return float(config.get("rope_theta") or given.get("rope_theta") or 10000.0)


def rope_scaling(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is done to the rotation beyond its base; {} for nothing."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    given = given.get("full_attention", given)
    kind = given.get("rope_type") or given.get("type") or "default"
    return {} if kind == "default" else {**given, "rope_type": kind}


def llama3_factors(config: Mapping[str, Any], scaling: Mapping[str, Any]) -> Tensor:
    """By what llama.cpp divides each frequency, [head_dim / 2]: slow ones by the factor, fast ones by 1."""
    head = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    length = 2 * torch.pi * rope_theta(config) ** (torch.arange(0, head, 2, dtype=torch.float64) / head)
    factor, low, high = (float(scaling[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(scaling["original_max_position_embeddings"])
    smooth = ((context / length - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()
