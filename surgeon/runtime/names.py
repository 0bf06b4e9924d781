"""Tensors on disk ↔ parameters in memory, through transformers' own conversion tables.

Where a model holds several tensors of the disk as one parameter (experts, gate and up), each is a view into it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from surgeon.errors import MismatchError, nearest
from surgeon.runtime.load import Loaded
from surgeon.store.checkpoint import open_checkpoint

Shapes = Mapping[str, tuple[int, ...]]

#: A converter's source pattern → the names on disk that match it, in the order they are joined in.
Sources = Mapping[str, list[str]]


@dataclass(frozen=True)
class _Node:
    """How a parameter is made: of one disk tensor (`name`), or of parts by an operation along dimensions."""

    shape: tuple[int, ...]
    name: str = ""
    operation: str = ""
    dims: tuple[int, ...] = ()
    parts: tuple[_Node, ...] = ()

    def views(self, whole: Tensor) -> Iterable[tuple[str, Tensor]]:
        """Each disk tensor it is made of, with its view of `whole`."""
        if self.name:
            yield self.name, whole
        start = 0
        for number, part in enumerate(self.parts):
            if self.operation == "stack":
                yield from part.views(whole.select(self.dims[0], number))
            elif self.operation == "cat":
                length = part.shape[self.dims[0]]
                yield from part.views(whole.narrow(self.dims[0], start, length))
                start += length
            else:
                yield from part.views(whole.transpose(*self.dims))


class Views(dict[str, Tensor]):
    """Disk name → a view of the disk tensor's shape into the live parameter that holds it.

    Names of the disk that the model does not use (old buffers) are not in it, nor those in `refused`: parameters made
    of the disk's tensors by more than stacking, joining and transposing, or not in memory. Asking for a name that is
    not in it is a MismatchError that says why. `parameter` has the parameter of every name, in memory or not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refused: dict[str, MismatchError] = {}
        self.parameter: dict[str, str] = {}
        self._made: dict[str, _Node] = {}

    def take(self, parameter: str, value: Tensor, made: _Node) -> None:
        """Add the views into a parameter's value, unless that is not in memory."""
        if made.shape != tuple(value.shape):
            raise MismatchError(f"{parameter} is {list(made.shape)} on disk and {list(value.shape)} in memory")
        self._made[parameter] = made
        inside = dict(made.views(value))
        self.parameter |= dict.fromkeys(inside, parameter)
        if value.device.type != "meta":
            self.update(inside)
            return
        elsewhere = MismatchError(
            f"{parameter} is not in memory: accelerate keeps it elsewhere",
            hint="load the model where it fits: a larger device, or bfloat16",
        )
        self.refused |= dict.fromkeys(inside, elsewhere)

    def within(self, parameter: str, value: Tensor) -> dict[str, Tensor]:
        """The views into another tensor that stands for a parameter."""
        return dict(self._made[parameter].views(value))

    def __missing__(self, name: str) -> Tensor:
        raise self.refused.get(name) or MismatchError(
            f"the loaded model holds no tensor {name!r}", hint=nearest(name, self)
        )


def parameter_views(loaded: Loaded) -> Views:
    """The views of all tensors of the folder a model was loaded from."""
    stored = open_checkpoint(loaded.folder, str(loaded.folder)).tensors
    return views_of(loaded.model, {name: found.spec.shape for name, found in stored.items()})


def offset_in(view: Tensor, parameter: Tensor) -> int | None:
    """The elements from a parameter's first to a view's first; None where the view lies elsewhere."""
    size = parameter.element_size()
    start = view.data_ptr() - parameter.data_ptr()
    held = parameter.device == view.device and 0 <= start < max(parameter.numel() * size, 1)
    return start // size if held else None


def views_of(model: Any, shapes: Shapes, state: Mapping[str, Tensor] | None = None) -> Views:
    """The same for a model and the shapes of a table of disk tensors; `state` stands for the model's parameters."""
    held: Mapping[str, Tensor] = model.state_dict(keep_vars=True) if state is None else state
    found = Views()
    for parameter, (converter, sources) in _sources(model, held, shapes).items():
        try:
            found.take(parameter, held[parameter].detach(), _node(parameter, converter, sources, shapes))
        except MismatchError as error:
            found.refused |= {name: error for names in sources.values() for name in names}
    return found


def module_names(config: Mapping[str, Any], shapes: Shapes) -> dict[str, str]:
    """Disk name → parameter name, for the disk tensors that are one parameter each of the model transformers builds.

    Nothing is loaded. Empty for an architecture that transformers does not know: the disk's names are all there is.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind = str(config.get("model_type", ""))
    if kind not in CONFIG_MAPPING:
        return {}
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind].from_dict(dict(config)))
    except ValueError:
        return {}
    found = _sources(model, model.state_dict(keep_vars=True), shapes)
    alone = {
        parameter: [n for names in by.values() for n in names] for parameter, (made, by) in found.items() if not made
    }
    return {names[0]: parameter for parameter, names in alone.items() if len(names) == 1}


def _sources(model: Any, state: Mapping[str, Tensor], shapes: Shapes) -> dict[str, tuple[Any, dict[str, list[str]]]]:
    """For every parameter its converter (None where it is one tensor of the disk) and, by pattern, the disk's names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    table = get_model_conversion_mapping(model)
    renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in table if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = model.base_model_prefix
    found: dict[str, tuple[Any, dict[str, list[str]]]] = {}
    for name in sorted(shapes, key=dot_natural_key):
        parameter, pattern = rename_source_key(name, renamings, converters, prefix, state)  # type: ignore[arg-type]
        if parameter not in state and name in state:
            parameter, pattern = name, None
        if parameter in state:
            converter = None if pattern is None else by_pattern[pattern]
            found.setdefault(parameter, (converter, {}))[1].setdefault(pattern or name, []).append(name)
    return found


def _node(parameter: str, converter: Any, sources: Sources, shapes: Shapes) -> _Node:
    """How the parameter is made, read off the converter's operations in their order."""
    groups = {pattern: [_Node(shapes[name], name) for name in names] for pattern, names in sources.items()}
    for operation in getattr(converter, "operations", ()):
        kind = type(operation).__name__
        if kind == "MergeModulelist":
            groups = {pattern: [_stack(nodes, operation.dim)] for pattern, nodes in groups.items()}
        elif kind == "Concatenate":
            ordered = [node for pattern in converter.source_patterns for node in groups.get(pattern, ())]
            groups = {"": [_cat(ordered, operation.dim)]}
        elif kind == "Transpose" and not operation.check_dims:
            dims = operation.dim0, operation.dim1
            groups = {pattern: [_transpose(node, dims) for node in nodes] for pattern, nodes in groups.items()}
        else:
            raise _inexpressible(parameter, sources, kind)
    nodes = [node for group in groups.values() for node in group]
    if len(nodes) != 1 or (converter is not None and len(converter.target_patterns) != 1):
        raise _inexpressible(parameter, sources, "several results")
    return nodes[0]


def _stack(nodes: list[_Node], dim: int) -> _Node:
    shape = list(nodes[0].shape)
    shape.insert(dim, len(nodes))
    return _Node(tuple(shape), operation="stack", dims=(dim,), parts=tuple(nodes))


def _cat(nodes: list[_Node], dim: int) -> _Node:
    shape = list(nodes[0].shape)
    shape[dim] = sum(node.shape[dim] for node in nodes)
    return _Node(tuple(shape), operation="cat", dims=(dim,), parts=tuple(nodes))


def _transpose(node: _Node, dims: tuple[int, int]) -> _Node:
    shape = list(node.shape)
    shape[dims[0]], shape[dims[1]] = shape[dims[1]], shape[dims[0]]
    return _Node(tuple(shape), operation="transpose", dims=dims, parts=(node,))


def _inexpressible(parameter: str, sources: Sources, how: str) -> MismatchError:
    first = next(iter(next(iter(sources.values()))))
    return MismatchError(
        f"{first} has no place of its own in the loaded model: {parameter} is made of it by {how}",
        hint="write the edited model to a folder and load that",
    )
