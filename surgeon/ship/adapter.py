"""A change of a model as a PEFT LoRA adapter: which tensors it can carry, and the folder it is written into.

Every module's alpha is its rank, so that the change is B A itself, as servers and PEFT compute it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from surgeon.ship.factors import Factors
from surgeon.store.adapter import CONFIG, WEIGHTS
from surgeon.store.adapter_keys import EMBEDDINGS, PREFIX
from surgeon.tensors import TensorSpec

#: Experts' tensors as transformers holds them in memory, in the order of its modules; the linear layers their rows are.
_FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


#: The values of --max-lora-rank that vLLM accepts.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

#: The last part of the module's name of what routes tokens to experts; no server adapts it.
_ROUTERS = ("gate", "router", "shared_expert_gate")


def misfit(name: str, spec: TensorSpec) -> str | None:
    """Why a low-rank adapter cannot carry a change of this tensor; None where it can."""
    module, _, leaf = name.rpartition(".")
    if len(spec.shape) == 3 and expert_parts(name):
        return None
    if len(spec.shape) != 2:
        return f"has {len(spec.shape)} axes; an adapter carries matrices"
    if leaf != "weight":
        return "is no module's weight"
    if module.rpartition(".")[2] in EMBEDDINGS and "head" not in module:
        return "is an embedding, which servers take no adapter for"
    if module.rpartition(".")[2] in _ROUTERS:
        return "is a router, which servers take no adapter for"
    return None


def expert_parts(name: str) -> tuple[str, ...]:
    """What each expert's parts of a fused tensor [expert, out, in] are called, by its rows; () for other tensors."""
    module, _, leaf = name.rpartition(".")
    return _FUSED.get(leaf, ()) if module.endswith(".experts") else ()


def served_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank of vLLM that serves a rank; None where there is none."""
    return next((served for served in RANKS if served >= rank), None)


def one_by_one(name: str, found: Sequence[Factors]) -> dict[str, Factors]:
    """The factors of a fused tensor of experts by the module that each expert's part is, as servers look for them."""
    parts, by_module = expert_parts(name), {}
    for number, factors in enumerate(found):
        for part, rows in zip(parts, factors.b.chunk(len(parts)), strict=True):
            module = f"{name.rpartition('.')[0]}.{number}.{part}"
            by_module[module] = replace(factors, b=rows)
    return by_module


def write_adapter(
    folder: Path, changes: Mapping[str, Factors], *, base: str, transposed: bool, dtype: torch.dtype,
    revision: str = "", stacks: Mapping[str, Sequence[Factors]] | None = None,
) -> None:  # fmt: skip
    """Write adapter_model.safetensors and adapter_config.json for changes by module name.

    `stacks` holds those of parameters [expert, out, in], one pair an expert. `transposed` says that the base stores its
    weights [in, out] (Conv1D); factors are those of [out, in] all the same.
    """
    from safetensors.torch import save_file

    tensors, stacks = {}, stacks or {}
    for module, factors in changes.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = factors.a.to(dtype).contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = factors.b.to(dtype).contiguous()
    ranks = {module: factors.rank for module, factors in changes.items()}
    wrapped: Counter[str] = Counter()
    for name in sorted(stacks, key=lambda name: [*_FUSED].index(name.rpartition(".")[2])):
        module, found = name.rpartition(".")[0], stacks[name]
        # A pattern of ranks knows modules, and so all parameters of one have one rank.
        rank = max(one.rank for other, each in stacks.items() if other.rpartition(".")[0] == module for one in each)
        # PEFT wraps a module once for each of its parameters, in their order.
        inner = ".base_layer" * (sum(other.rpartition(".")[0] == module for other in stacks) - 1 - wrapped[module])
        wrapped[module] += 1
        tensors[f"{PREFIX}{module}{inner}.lora_A.weight"], tensors[f"{PREFIX}{module}{inner}.lora_B.weight"] = (
            one.to(dtype).contiguous() for one in _stacked(found, rank)
        )
        ranks[module] = rank
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = _config(ranks, sorted(changes), list(stacks), base, transposed, revision)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _stacked(found: Sequence[Factors], rank: int) -> tuple[Tensor, Tensor]:
    """A [experts · r, in], expert by expert, and B [out, r · experts], rank by rank: as PEFT has them of parameters."""
    padded = [
        (functional.pad(one.a, (0, 0, 0, rank - one.rank)), functional.pad(one.b, (0, rank - one.rank)))
        for one in found
    ]
    return torch.cat([a for a, _ in padded]), torch.stack([b for _, b in padded], dim=2).flatten(1)


def _config(
    ranks: Mapping[str, int], modules: list[str], parameters: list[str], base: str, transposed: bool, revision: str
) -> dict[str, Any]:
    """PEFT's configuration: the commonest rank, and the modules that have another."""
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: own for module, own in sorted(ranks.items()) if own != rank}
    return {
        "alpha_pattern": others,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": others,
        "revision": revision or None,
        "target_modules": modules,
        **({"target_parameters": parameters} if parameters else {}),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
