"""A PEFT LoRA adapter: a difference of two models, its low-rank factors left apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError, MismatchError
from surgeon.store.adapter_config import read_settings
from surgeon.store.adapter_keys import LowRank, Replacement, Update, sort_updates
from surgeon.store.adapter_match import oriented, parted, renamed
from surgeon.store.containment import contained, names_in
from surgeon.store.formats import listed, refuse_adapter
from surgeon.store.header import Stored, read_header
from surgeon.store.json_files import read_object
from surgeon.tensors import TensorSpec

__all__ = ["Adapter", "LowRank", "Replacement", "Update", "open_adapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """What an adapter does to each tensor, by the names PEFT gives its targets."""

    ref: str
    root: Path
    revision: str | None
    config: Mapping[str, Any]
    updates: Mapping[str, tuple[Update, ...]]

    @property
    def stored(self) -> Mapping[str, Stored]:
        """Every stored tensor: a target's name and the part it is of it."""
        found = {}
        for name, updates in self.updates.items():
            for update in updates:
                held = ((part, getattr(update, part, None)) for part in ("a", "b", "magnitude", "value"))
                found |= {f"{name}:{part}": stored for part, stored in held if stored is not None}
        return found

    def on(self, base: Mapping[str, TensorSpec], base_name: str) -> Mapping[str, tuple[Update, ...]]:
        """The updates by the base's names on disk and in its orientation; MismatchError lists what does not fit."""
        names, faults = renamed(self.updates, base)
        hint = self._made_for()
        if not faults and (apart := parted(self.updates, base, self.config)):
            faults, hint = apart, "merge it with peft (merge_and_unload) and give the merged model"
        placed: dict[str, tuple[Update, ...]] = {}
        for target, name in names.items():
            placed[name], misfits = oriented(self.updates[target], name, base)
            faults += misfits
        if faults:
            tensors = listed(faults, 20, lines=True)
            found = f"adapter {self.ref} does not fit {base_name}; {len(faults)} tensor(s):\n  {tensors}"
            raise MismatchError(found, hint=hint)
        return placed

    def _made_for(self) -> str:
        made_for = self.config.get("base_model_name_or_path")
        known = f"; its configuration names {made_for!a}" if isinstance(made_for, str) and made_for else ""
        return f"probably an adapter for another base{known}: use it with the model it was trained on"


def open_adapter(root: Path, ref: str, revision: str | None = None) -> Adapter:
    """Read the configuration and header of an adapter folder."""
    names = names_in(root)
    if CONFIG not in names:
        raise CheckpointError(f"{root}: no {CONFIG}", hint="an adapter is a folder as PEFT's save_pretrained writes it")
    if WEIGHTS not in names:
        raise refuse_adapter(names, str(root))
    config_path = contained(root, CONFIG, ref)
    config = read_object(config_path)
    settings = read_settings(config, str(config_path))
    weights = contained(root, WEIGHTS, ref)
    updates = sort_updates(read_header(weights).tensors, settings, str(weights))
    if not updates:
        raise CheckpointError(f"{weights}: an adapter without tensors", hint="save it again")
    return Adapter(ref, root, revision, config, updates)
