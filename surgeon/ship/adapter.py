"""A change of a model as a PEFT LoRA adapter: which tensors it can carry, and the folder it is written into.

Every module's alpha is its rank, so that the change is B A itself, as servers and PEFT compute it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from surgeon.ship.factors import Factors
from surgeon.store.adapter import CONFIG, WEIGHTS
from surgeon.store.adapter_keys import EMBEDDINGS, PREFIX
from surgeon.tensors import TensorSpec


def misfit(name: str, spec: TensorSpec) -> str | None:
    """Why a low-rank adapter cannot carry a change of this tensor; None where it can."""
    module, _, leaf = name.rpartition(".")
    if len(spec.shape) != 2:
        return f"has {len(spec.shape)} axes; an adapter carries matrices"
    if leaf != "weight":
        return "is no module's weight"
    if module.rpartition(".")[2] in EMBEDDINGS and "head" not in module:
        return "is an embedding, which servers take no adapter for"
    return None


def write_adapter(
    folder: Path, changes: Mapping[str, Factors], *, base: str, transposed: bool, dtype: torch.dtype, revision: str = ""
) -> None:
    """Write adapter_model.safetensors and adapter_config.json for changes by module name.

    `transposed` says that the base stores its weights [in, out] (Conv1D); factors are those of [out, in] all the same.
    """
    from safetensors.torch import save_file

    tensors = {}
    for module, factors in changes.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = factors.a.to(dtype).contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = factors.b.to(dtype).contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = _config({module: factors.rank for module, factors in changes.items()}, base, transposed, revision)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _config(ranks: Mapping[str, int], base: str, transposed: bool, revision: str) -> dict[str, Any]:
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
        "target_modules": sorted(ranks),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
