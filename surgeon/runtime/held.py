"""The parameters of a loaded model by their checkpoint's names, wherever they are: in modules, or where accelerate
keeps what does not fit; the wrappers of PEFT and torch.compile are seen through.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.errors import RefusedError

#: What PEFT's wrappers of a module call that module.
_INNER = ("base_layer", "original_module")


@dataclass(frozen=True, eq=False)
class Live:
    """A model in memory; `folder` is what it holds as it was loaded, None where that is not known."""

    model: Any
    folder: Path | None = None


@dataclass(frozen=True, eq=False)
class Shelf:
    """Where one parameter is kept: an entry of a module, of accelerate's state dict, or (`in_files`) of its index.

    `values` reads it: the same entries, or accelerate's loader of them. `folder` is where accelerate writes.
    """

    entries: MutableMapping[str, Any]
    key: str
    values: Mapping[str, Tensor]
    in_files: bool = False
    folder: Path | None = None

    def read(self) -> Tensor:
        """The parameter's value; from a file, a copy of its own."""
        return self.values[self.key]


@dataclass(frozen=True, eq=False)
class Held:
    """A model's parameters and buffers by name, on `meta` where they are kept in files; where each parameter is kept.

    `tied` names parameters that are one with another: the head, and the embedding it is. `shadowed` are those that an
    adapter has a copy of its own of, which is used in their place.
    """

    tensors: Mapping[str, Tensor]
    shelves: Mapping[str, Shelf]
    tied: Mapping[str, str]
    shadowed: frozenset[str] = frozenset()

    def is_tied(self, name: str) -> bool:
        """Whether a parameter is still one with another."""
        other = self.tied.get(name)
        if other is None or name not in self.tensors or other not in self.tensors:
            return False
        one, two = self.tensors[name], self.tensors[other]
        if one.device.type == "meta" or two.device.type == "meta":
            return one.device == two.device
        return one.data_ptr() == two.data_ptr()


def bare(model: Any) -> Any:
    """The transformers model in what PEFT or torch.compile made of it. RefusedError for a merged adapter."""
    model = getattr(model, "_orig_mod", model)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if any(getattr(module, "merged_adapters", None) for module in inner.modules()):
        raise RefusedError(
            "an adapter is merged into the weights of this model, which are no checkpoint's then",
            hint="take it out first: model.unmerge_adapter(); or merge it for good: model.merge_and_unload()",
        )
    return inner


def held(model: Any) -> Held:
    """What a bare model holds. RefusedError for a parameter on `meta` that accelerate does not keep either."""
    tensors: dict[str, Tensor] = {}
    shelves: dict[str, Shelf] = {}
    wrapped, shadowed = _wrapped(model), set[str]()
    for path, value in model.state_dict(keep_vars=True).items():
        name = _plain(path, wrapped)
        if name is None:
            continue
        shelf = _shelf(model, path, value)
        if shelf is not None:
            shelves[name] = shelf
        elsewhere = shelf is not None and not shelf.in_files and value.device.type == "meta"
        tensors[name] = shelf.read() if shelf is not None and elsewhere else value
        if f".{_INNER[1]}." in f".{path}":
            shadowed.add(name)
    tied = model.all_tied_weights_keys if getattr(model.config, "tie_word_embeddings", False) else {}
    return Held(tensors, shelves, dict(tied), frozenset(shadowed))


def _wrapped(model: Any) -> dict[str, str]:
    """The paths of PEFT's wrappers, and what they call the module inside."""
    return {
        path: inner
        for path, module in model.named_modules()
        for inner in _INNER
        if isinstance(getattr(module, inner, None), nn.Module)
    }


def _plain(path: str, wrapped: Mapping[str, str]) -> str | None:
    """A parameter's name without the wrappers; None for what a wrapper adds."""
    kept: list[str] = []
    walked: list[str] = []
    for part in path.split("."):
        inner = wrapped.get(".".join(walked))
        if inner is None:
            kept.append(part)
        elif part != inner:
            return None
        walked.append(part)
    return ".".join(kept)


def _shelf(model: Any, path: str, value: Tensor) -> Shelf | None:
    """Where a parameter is kept; None for a buffer."""
    above, _, name = path.rpartition(".")
    module = model.get_submodule(above)
    if value.device.type == "meta":
        return _offloaded(model, path)
    return Shelf(module._parameters, name, module._parameters) if name in module._parameters else None


def _offloaded(model: Any, path: str) -> Shelf:
    """What accelerate loads a parameter from: the map of the innermost module around it that has one."""
    parts = path.split(".")
    for count in range(len(parts) - 1, -1, -1):
        module = model.get_submodule(".".join(parts[:count]))
        if (found := _map_of(module)) is not None:
            return _entry(found, ".".join(parts[count:]))
    raise RefusedError(f"{path} has no value: it is on the meta device", hint="load the model's weights first")


def _map_of(module: Any) -> Mapping[str, Tensor] | None:
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        if (found := getattr(one, "weights_map", None)) is not None:
            return found
    return None


def _entry(weights: Any, key: str) -> Shelf:
    from accelerate.utils import OffloadedWeightsLoader
    from accelerate.utils.offload import PrefixedDataset

    while isinstance(weights, PrefixedDataset):
        weights, key = weights.dataset, f"{weights.prefix}{key}"
    if not isinstance(weights, OffloadedWeightsLoader):
        return Shelf(weights, key, weights)
    if key in weights.state_dict:
        return Shelf(weights.state_dict, key, weights.state_dict)
    folder = Path(weights.save_folder) if weights.save_folder is not None else None
    index: Any = weights.index
    return Shelf(index, key, weights, True, folder)
