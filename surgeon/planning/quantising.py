"""Quantised weights in a plan: read through a codec, copied part by part, made again after an edit, or refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from surgeon.errors import MismatchError, Origin
from surgeon.planning.step import Input, Key, Requantised, Step, Target
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.quantised import FILES, KEYS, Packed, without_settings
from surgeon.tensors import ACTIVATIONS, TensorSpec

if TYPE_CHECKING:
    from surgeon.planning.graph import Graph
    from surgeon.planning.kinds import Kinds
    from surgeon.planning.promises import Promise
    from surgeon.planning.resolve import Node
    from surgeon.planning.sources import Sources
    from surgeon.space.output import Output
    from surgeon.space.sides import Content, Sides

#: The codec whose numbers need only their scales, so that any run of them is read alone; and written again.
_FP8 = "fp8:dequantise"


def unpacked(node: Node, tensor: str, packed: Packed, graph: Graph) -> Key:
    """The step that makes a float tensor of a weight's parts."""
    loads = [graph.load(node, tensor, stored, leaf) for leaf, stored in packed.parts]
    inputs = tuple(Input(load, whole=packed.codec != _FP8 or load != loads[0]) for load in loads)
    settings = {**dict(packed.settings), "leaves": tuple(leaf for leaf, _ in packed.parts), "packed": packed}
    return graph.add(node, tensor, packed.codec, inputs, settings, spec=TensorSpec("F32", packed.spec.shape))


def packed_as(name: str, key: Key, graph: Graph, giver: Checkpoint, output: Output) -> Packed | None:
    """How a tensor of the result is stored in parts; None where it is stored as it is.

    As in the model that gives the side files, since their config says how weights are quantised; a tensor that has no
    such name there (a layer moved to another number) as where it comes from.
    """
    if giver.quantised is None or output.dequantize:
        return None
    if name in giver.table:
        return giver.quantised.packed.get(name)
    return next((found for step in graph.steps.below(key) if (found := _packed(step)) is not None), None)


def copied(name: str, packed: Packed, key: Key, graph: Graph) -> tuple[Target, ...]:
    """The copies of a weight's parts, where its value lies on a disk in this very format; () where it does not."""
    step = graph.steps[key]
    found = _packed(step)
    if found is None or _layout(found) != _layout(packed):
        return ()
    pairs = zip(packed.called(name), found.parts, step.inputs, strict=True)
    return tuple(
        Target(called, stored.spec, need.key, "copy", "unchanged", stored, reads=stored.spec.nbytes)
        for called, (_, stored), need in pairs
    )


def requantised(
    root: Node, name: str, key: Key, packed: Packed, graph: Graph, kinds: Kinds, promise: Promise | None
) -> tuple[Target, ...]:
    """The codes and the scales of an FP8 weight, made of its value."""
    old, shape = packed.parts[1][1], TensorSpec("F32", graph.steps[key].spec.shape)
    settings: dict[str, Any] = {**dict(packed.settings), "dtype": old.spec.dtype}
    value, before = Input(key, whole=True), Input(graph.load(root, name, old, "scales before"), whole=True)
    grid = TensorSpec("F32", old.spec.shape)
    scale = graph.add(root, name, "fp8:scales", (value, before), settings, "scales", grid)
    whole = Input(scale, whole=True)
    frame, last = _frame(graph.steps[key])
    made = (value, whole, *(Input(one, whole=True) for one in frame))
    codes = graph.add(root, name, "fp8:quantise", made, {**settings, "last": last}, "codes", shape)
    read = graph.add(root, name, _FP8, (Input(codes), whole), settings, "read again", shape)
    first, second = (
        Target(called, spec, made, "compute", kinds.of(made).reason, reads=kinds.of(made).input_bytes)
        for called, spec, made in zip(
            packed.called(name), (TensorSpec("F8_E4M3", shape.shape), old.spec), (codes, scale), strict=True
        )
    )
    return replace(first, promise=promise, requantised=Requantised(key, read)), second


def refuse(name: str, model: str, source: Checkpoint, origin: Origin | None) -> MismatchError:
    """The error for a weight that would change and whose format is not written."""
    about = source.quantised
    assert about is not None
    return MismatchError(
        f"{name} of {model} would change, and is stored as {about.format}: {about.once}",
        origin=origin,
        hint=about.hint,
    )


def check_quantised(targets: Iterable[Target], sources: Sources, output: Output) -> None:
    """Refuse arithmetic on weights that are not read, and writing them in full."""
    first = next((target for target in targets if target.action == "compute"), None)
    quantised = {m: s.quantised for m, s in sources.items() if isinstance(s, Checkpoint) and s.quantised is not None}
    for model, about in quantised.items():
        if about.unread and (first is not None or output.dequantize):
            would = f"; {first.name} would be computed from packed weights" if first is not None else ""
            raise MismatchError(
                f"{model} is quantised ({about.format}){would}: {about.unread}", origin=model.origin, hint=about.hint
            )


def is_activation_scale(name: str, giver: Checkpoint) -> bool:
    """Whether a tensor scales activations for quantised weights, and so is none of the model's own."""
    return giver.quantised is not None and name.rpartition(".")[2] in ACTIVATIONS


def refuse_scale(name: str) -> MismatchError:
    """The error for static scales of activations that would be combined."""
    return MismatchError(
        f"{name} scales the activations of quantised weights, and would be combined with others: it is measured, not "
        "computed",
        hint="write the result in full: output: {dequantize: true}, or --dequantize",
    )


def full_config(config: Mapping[str, Any], output: Output) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What dequantising changes in a config, by key, and the keys it leaves out."""
    if not output.dequantize:
        return {}, ()
    full = without_settings(config)
    changed = {key: value for key, value in full.items() if value != config[key]}
    return changed, tuple(key for key in KEYS if key in config)


def full_files(sides: Sides, output: Output) -> dict[str, Content | None]:
    """The files that dequantising leaves out."""
    return {name: None for name in FILES if output.dequantize and name in sides.files}


def _frame(step: Step) -> tuple[tuple[Key, ...], bool]:
    """The columns an edit works along, where it was the last thing done, and whether the residual axis is the last."""
    whole = tuple(need.key for need in step.inputs if need.whole)
    return (whole if step.kernel.startswith("edit:") else ()), step.kernel.endswith("@last")


def _packed(step: Step) -> Packed | None:
    """What a step unpacks."""
    return next((value for name, value in step.settings if name == "packed"), None)


def _layout(packed: Packed) -> tuple[Any, ...]:
    """What must be equal for parts to be exchanged as they are."""
    return packed.codec, packed.settings, tuple((leaf, stored.spec) for leaf, stored in packed.parts)
