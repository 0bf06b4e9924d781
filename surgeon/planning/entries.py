"""Which entries of a merge's artifacts speak of a tensor, and whether they fit it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from surgeon.errors import MismatchError

if TYPE_CHECKING:
    from surgeon.artifacts.per_tensor import PerTensor
    from surgeon.space.method import MergeMethod
    from surgeon.store.header import Stored


class Entries(NamedTuple):
    """Where the entries lie, each once, and by argument the number of each model's among them (None: it has none).

    `aligned` entries are cut into blocks with the tensor. The setting ``turned`` says that the tensor's input axis is
    the last but one, and that the method is to see it turned.
    """

    stored: tuple[Stored, ...] = ()
    settings: Mapping[str, Any] = {}
    aligned: bool = False


def place_entries(
    label: str,
    method: MergeMethod[...],
    measured: Mapping[str, tuple[PerTensor | None, ...]],
    tensor: str,
    shape: tuple[int, ...],
) -> Entries:
    """The entries of a tensor. MismatchError where some artifacts have one and others not, or one does not fit."""
    if not method.per_tensor:
        return Entries()
    held = [one for artifacts in measured.values() for one in artifacts if one is not None]
    places = {id(one): one.place(tensor) for one in held}
    speaking = [one for one in held if places[id(one)] is not None]
    if speaking and len(speaking) < len(held):
        silent = next(one for one in held if places[id(one)] is None)
        raise MismatchError(
            f"{label}: {silent.ref} has nothing for {tensor}, and {speaking[0].ref} has",
            hint="measure all of them on models of one architecture, with the same version",
        )
    if fault := next(((one, fault) for one in speaking if (fault := one.fault(tensor, shape))), None):
        raise MismatchError(
            f"{label}: the {fault[0].kind} of {tensor} in {fault[0].ref} {fault[1]}",
            hint="it was measured on another model: measure it on the one it is given for",
        )
    axes = {place.axis for place in places.values() if place is not None}
    if len(axes) > 1:
        raise MismatchError(f"{label}: the artifacts do not agree on which axis of {tensor} is its input's")
    stored = tuple(dict.fromkeys(_stored(one, tensor) for one in speaking))
    found: dict[str, Any] = {"turned": axes == {-2}}
    for parameter in method.per_tensor:
        artifacts = measured.get(parameter.argument, (None,))
        speaks = [one is not None and places[id(one)] is not None for one in artifacts]
        numbers = tuple(
            stored.index(_stored(one, tensor)) if one is not None and told else None
            for one, told in zip(artifacts, speaks, strict=True)
        )
        found[parameter.argument] = numbers if parameter.per_model else numbers[0]
    return Entries(stored, found, method.per_tensor[0].type.aligned)


def _stored(artifact: PerTensor, tensor: str) -> Stored:
    place = artifact.place(tensor)
    assert place is not None
    return artifact.stored[place.entry]
