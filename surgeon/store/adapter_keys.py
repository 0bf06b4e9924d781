"""The tensors of a PEFT adapter file, sorted into low-rank updates and replacements."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from surgeon.errors import CheckpointError
from surgeon.store.adapter_config import Settings
from surgeon.store.formats import listed
from surgeon.store.header import Stored

PREFIX = "base_model.model."

#: Modules that PEFT stores whole when the vocabulary was resized or an embedding is a target.
EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out")

_LOW_RANK = re.compile(
    r"(?P<module>.+)\.((?P<factor>lora_[AB])\.weight|(?P<whole>lora_embedding_[AB]|base_layer\.(weight|bias))"
    r"|(?P<magnitude>lora_magnitude_vector)(\.weight)?)"
)
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save(\.default)?\.(?P<tail>.+)")


@dataclass(frozen=True)
class LowRank:
    """scale * (B @ A), transposed where the base stores [in, out]; with `magnitude`, DoRA.

    DoRA: W' = m * (W + scale * B A) / |W + scale * B A|, by rows of the [out, in] orientation of B @ A.
    """

    a: Stored
    b: Stored
    scale: float
    transposed: bool
    magnitude: Stored | None
    embedding: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Of the update as the base stores its tensor."""
        rows, columns = self.b.spec.shape[0], self.a.spec.shape[1]
        return (columns, rows) if self.transposed else (rows, columns)


@dataclass(frozen=True)
class Replacement:
    """A tensor that takes the base's place; a LowRank after it applies on top of it."""

    value: Stored


Update = LowRank | Replacement


_MERGE = "save the adapter again with a current peft, or merge it with peft and give the merged model"


def sort_updates(tensors: Mapping[str, Stored], settings: Settings, where: str) -> dict[str, tuple[Update, ...]]:
    """Target tensor name → its updates, replacements first; every tensor of the file has its place or is an error."""
    parts: dict[str, dict[str, Stored]] = {}
    replacements: dict[str, Stored] = {}
    unknown: list[str] = []
    for key, stored in tensors.items():
        name = key.removeprefix(PREFIX)
        match = _LOW_RANK.fullmatch(name)
        if not stored.spec.is_float:
            raise CheckpointError(f"{where}: {key!a} is {stored.spec}; only floating tensors are read", hint=_MERGE)
        if name != key and match and ".modules_to_save" not in name:
            part = match["factor"] or match["whole"] or match["magnitude"]
            parts.setdefault(match["module"], {})[part] = stored
            continue
        target = _replaced(name, settings, tensors) if name != key else None
        if target is None or target in replacements:
            unknown.append(ascii(key))
        else:
            replacements[target] = stored
    if unknown:
        raise CheckpointError(f"{where}: tensors with no known meaning: {listed(unknown)}", hint=_MERGE)
    return _joined(parts, replacements, settings, where)


def _replaced(name: str, settings: Settings, tensors: Mapping[str, Stored]) -> str | None:
    """The tensor that a plain key replaces; None when nothing in the configuration explains the key."""
    saved = _SAVED.fullmatch(name)
    if saved:
        target = f"{saved['module']}.{saved['tail']}"
        return target if settings.saves(target) else None
    module, _, leaf = name.rpartition(".")
    targeted = settings.bias == "lora_only" and f"{PREFIX}{module}.lora_A.weight" in tensors
    whole = leaf == "weight" and module.rpartition(".")[2] in EMBEDDINGS
    bias = leaf == "bias" and (settings.bias == "all" or targeted)
    return name if whole or bias or settings.saves(name) else None


def _joined(
    parts: Mapping[str, Mapping[str, Stored]], replacements: dict[str, Stored], settings: Settings, where: str
) -> dict[str, tuple[Update, ...]]:
    """One entry a target; faults of all modules are told together."""
    faults: list[str] = []
    low_rank: dict[str, LowRank] = {}
    for module, found in parts.items():
        for leaf in ("weight", "bias"):
            stored = found.get(f"base_layer.{leaf}")
            if stored and f"{module}.{leaf}" in replacements:
                faults.append(f"{module}.{leaf} is stored twice")
            elif stored:
                replacements[f"{module}.{leaf}"] = stored
        try:
            low_rank[f"{module}.weight"] = _low_rank(module, found, settings)
        except ValueError as fault:
            faults.append(f"{module}: {fault}")
    if faults:
        found = f"{where}: {len(faults)} broken module(s):\n  {listed(faults, 20, lines=True)}"
        raise CheckpointError(found, hint=_MERGE)
    updates: dict[str, tuple[Update, ...]] = {name: (Replacement(value),) for name, value in replacements.items()}
    for name, update in low_rank.items():
        updates[name] = (*updates.get(name, ()), update)
    return updates


def _low_rank(module: str, found: Mapping[str, Stored], settings: Settings) -> LowRank:
    """The update made of one module's tensors; ValueError says what is wrong with them."""
    embedding = "lora_embedding_A" in found or "lora_embedding_B" in found
    if embedding and ("lora_A" in found or "lora_B" in found):
        raise ValueError("both linear and embedding factors")
    kind = "lora_embedding_" if embedding else "lora_"
    a, b, magnitude = found.get(kind + "A"), found.get(kind + "B"), found.get("lora_magnitude_vector")
    if a is None or b is None:
        raise ValueError("no low-rank factors" if a is b else f"factor {'A' if a is None else 'B'} is missing")
    if len(a.spec.shape) != 2 or len(b.spec.shape) != 2:
        raise ValueError(f"A is {a.spec} and B is {b.spec}; only matrices are supported (no convolutions)")
    rank = settings.rank(module)
    if a.spec.shape[0] != rank or b.spec.shape[1] != rank:
        raise ValueError(f"A is {a.spec} and B is {b.spec}, but the configuration gives rank {rank}")
    if (magnitude is not None) != settings.use_dora:
        without = "use_dora, but no magnitude vector"
        raise ValueError(without if settings.use_dora else "a magnitude vector, but not use_dora")
    if magnitude is not None and magnitude.spec.shape != b.spec.shape[:1]:
        raise ValueError(f"the magnitude vector is {magnitude.spec}, B is {b.spec}")
    return LowRank(a, b, settings.scale(module), embedding or settings.fan_in_fan_out, magnitude, embedding)
