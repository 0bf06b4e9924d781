"""The tensors of a PEFT adapter file, sorted into low-rank updates and replacements."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from surgeon.errors import CheckpointError
from surgeon.store.adapter_config import Settings
from surgeon.store.header import Stored

PREFIX = "base_model.model."

#: Modules that PEFT stores whole when the vocabulary was resized or an embedding is a target.
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out")

_LOW_RANK = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|base_layer)"
    r"(?P<tail>|\.weight|\.bias)"
)
_TAILS = {
    "lora_A": (".weight",), "lora_B": (".weight",), "lora_embedding_A": ("",), "lora_embedding_B": ("",),
    "lora_magnitude_vector": ("", ".weight"), "base_layer": (".weight", ".bias"),
}  # fmt: skip
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
        if name != key and match and match["tail"] in _TAILS[match["part"]] and ".modules_to_save" not in name:
            part = match["part"] + (match["tail"] if match["part"] == "base_layer" else "")
            parts.setdefault(match["module"], {})[part] = stored
            continue
        target = _replaced(name, settings, tensors) if name != key else None
        if target is None or target in replacements:
            unknown.append(key)
        else:
            replacements[target] = stored
    if unknown:
        raise CheckpointError(f"{where}: tensors with no known meaning: {_listed(unknown)}", hint=_MERGE)
    return _joined(parts, replacements, settings, where)


_MERGE = "save the adapter again with a current peft, or merge it with peft and give the merged model"


def _replaced(name: str, settings: Settings, tensors: Mapping[str, Stored]) -> str | None:
    """The tensor that a plain key replaces; None when nothing in the configuration explains the key."""
    saved = _SAVED.fullmatch(name)
    if saved:
        target = f"{saved['module']}.{saved['tail']}"
        return target if settings.saves(target) else None
    module, _, leaf = name.rpartition(".")
    if settings.saves(name) or (leaf == "weight" and module.rpartition(".")[2] in _EMBEDDINGS):
        return name
    targeted = f"{PREFIX}{module}.lora_A.weight" in tensors
    if leaf == "bias" and (settings.bias == "all" or (settings.bias == "lora_only" and targeted)):
        return name
    return None


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
        fault = _fault(module, found, settings)
        if fault:
            faults.append(f"{module}: {fault}")
        else:
            low_rank[f"{module}.weight"] = _low_rank(module, found, settings)
    if faults:
        listed = "\n  ".join(faults[:20]) + ("\n  …" if len(faults) > 20 else "")
        raise CheckpointError(f"{where}: {len(faults)} broken module(s):\n  {listed}", hint=_MERGE)
    updates: dict[str, tuple[Update, ...]] = {name: (Replacement(value),) for name, value in replacements.items()}
    for name, update in low_rank.items():
        updates[name] = (*updates.get(name, ()), update)
    return updates


def _pair(found: Mapping[str, Stored]) -> tuple[Stored | None, Stored | None, bool]:
    """A, B and whether they are an embedding's."""
    embedding = "lora_embedding_A" in found or "lora_embedding_B" in found
    kind = "lora_embedding_" if embedding else "lora_"
    return found.get(kind + "A"), found.get(kind + "B"), embedding


def _fault(module: str, found: Mapping[str, Stored], settings: Settings) -> str:
    """What is wrong with the tensors of one module; '' when nothing is."""
    a, b, embedding = _pair(found)
    if embedding and ("lora_A" in found or "lora_B" in found):
        return "both linear and embedding factors"
    if a is None or b is None:
        return "no low-rank factors" if a is b else f"factor {'A' if a is None else 'B'} is missing"
    if len(a.spec.shape) != 2 or len(b.spec.shape) != 2:
        return f"A is {a.spec} and B is {b.spec}; only matrices are supported (no convolutions)"
    rank = settings.rank(module)
    if a.spec.shape[0] != rank or b.spec.shape[1] != rank:
        return f"A is {a.spec} and B is {b.spec}, but the configuration gives rank {rank}"
    magnitude = found.get("lora_magnitude_vector")
    if (magnitude is not None) != settings.dora:
        return "use_dora, but no magnitude vector" if settings.dora else "a magnitude vector, but not use_dora"
    if magnitude is not None and magnitude.spec.shape != b.spec.shape[:1]:
        return f"the magnitude vector is {magnitude.spec}, B is {b.spec}"
    return ""


def _low_rank(module: str, found: Mapping[str, Stored], settings: Settings) -> LowRank:
    a, b, embedding = _pair(found)
    assert a is not None and b is not None
    transposed = embedding or settings.fan_in_fan_out
    return LowRank(a, b, settings.scale(module), transposed, found.get("lora_magnitude_vector"), embedding)


def _listed(names: list[str]) -> str:
    return ", ".join(ascii(name) for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
