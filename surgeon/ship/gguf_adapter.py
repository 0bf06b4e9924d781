"""A change of a model as a LoRA adapter for llama.cpp (`--lora`)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from surgeon.ship.adapter import misfit
from surgeon.ship.factors import Factors
from surgeon.ship.gguf_names import Naming
from surgeon.tensors import TensorSpec


def gguf_misfit(config: Mapping[str, Any], name: str, spec: TensorSpec) -> str | None:
    """Why an adapter for llama.cpp cannot carry a change of this tensor; an embedding it can, unless it is the head."""
    if len(spec.shape) != 2:
        return f"has {len(spec.shape)} axes; an adapter carries matrices"
    if name.endswith("embed_tokens.weight"):
        tied = config.get("tie_word_embeddings", False)
        return "is the head too: untie the base first, and export the adapter of that" if tied else None
    return misfit(name, spec)


def write_gguf_adapter(path: Path, changes: Mapping[str, Factors], names: Naming, label: str) -> None:
    """Write the factors B A of tensors by their names on disk; every one is applied as it is at scale 1."""
    from gguf import GGUFType, GGUFWriter

    writer = GGUFWriter(None, names.architecture.name)
    alpha = float(max(factors.rank for factors in changes.values()))
    with closing(writer):
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string("adapter.type", "lora")
        writer.add_name(label)
        writer.add_float32("adapter.lora.alpha", alpha)
        for name, factors in changes.items():
            called = names.name(name)
            # llama.cpp multiplies by alpha / rank, of each tensor's own rank.
            b = names.rows(name, factors.b.double()) * (factors.rank / alpha)
            a = factors.a.double()
            # An embedding's rows are looked up, so that its factors change places: [tokens, r] and [d, r].
            pair = (b, a.T) if name.endswith("embed_tokens.weight") else (a, b)
            for part, values in zip("ab", pair, strict=True):
                writer.add_tensor(f"{called}.lora_{part}", np.ascontiguousarray(values.float().numpy()))
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
