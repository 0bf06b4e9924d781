"""How a checkpoint's weights are quantised: which stored tensors make one weight, and whether it can be made again.

A weight is read as a float tensor whatever it is stored as. What a format is called, where its parts lie and what can
be done with it stands in `surgeon.store.quantised_formats`, by the `quant_method` of the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from surgeon.store.header import Stored
from surgeon.tensors import TensorSpec, stored_dtype

#: Keys of config.json that say how weights are quantised; servers read the first they know.
KEYS = ("quantization_config", "compression_config")

#: Files beside the weights that say it again.
FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


@dataclass(frozen=True)
class Packed:
    """A weight that is stored in parts: `spec` is what it is read as, `codec` the kernel that makes it of them.

    `parts` are (what follows the module's name, the stored tensor), the packed numbers first.
    """

    name: str
    spec: TensorSpec
    codec: str
    parts: tuple[tuple[str, Stored], ...]
    settings: tuple[tuple[str, Any], ...] = ()

    def called(self, weight: str) -> tuple[str, ...]:
        """What the parts are called where the weight is called `weight`."""
        return tuple(f"{module_of(weight)}{leaf}" for leaf, _ in self.parts)


@dataclass(frozen=True)
class Quantised:
    """A quantised checkpoint: its format in words, and its weights by name.

    `once` says why an edited weight is not packed again, `unread` why a weight is not read at all; '' where it is.
    """

    format: str
    packed: Mapping[str, Packed] = field(default_factory=dict)
    once: str = ""
    unread: str = ""
    hint: str = ""


def module_of(weight: str) -> str:
    """What the names of a weight's parts begin with: its module, or a fused weight's own name."""
    return weight.removesuffix("weight")


def settings_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config says of how its weights are quantised, also where it says so of the language model alone."""
    texts = (part for part in config.values() if isinstance(part, Mapping))
    parts = (config, *(part for part in texts if "hidden_size" in part))
    found = (part[key] for part in parts for key in KEYS if part.get(key))
    return next((value for value in found if isinstance(value, Mapping)), None)


def without_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of the same model with its weights in full."""
    kept = {key: value for key, value in config.items() if key not in KEYS}
    return {
        key: {name: inner for name, inner in value.items() if name not in KEYS} if isinstance(value, Mapping) else value
        for key, value in kept.items()
    }


def read_dtype(config: Mapping[str, Any]) -> str:
    """The dtype that quantised weights are read as: what the config computes in, BF16 where it does not say."""
    parts = (config, *(part for part in config.values() if isinstance(part, Mapping)))
    for part in parts:
        for key in ("dtype", "torch_dtype"):
            try:
                return stored_dtype(str(part[key]))
            except (KeyError, ValueError):
                continue
    return "BF16"


def presented(tensors: Mapping[str, Stored], quantised: Quantised | None) -> dict[str, TensorSpec]:
    """The table of a checkpoint as everything above sees it: a weight in parts is one float tensor."""
    if quantised is None:
        return {name: stored.spec for name, stored in tensors.items()}
    first = {packed.parts[0][1]: packed for packed in quantised.packed.values()}
    inner = {stored for packed in quantised.packed.values() for _, stored in packed.parts}
    table: dict[str, TensorSpec] = {}
    for name, stored in tensors.items():
        if stored in first:
            table[first[stored].name] = first[stored].spec
        elif stored not in inner:
            table[name] = stored.spec
    return table
