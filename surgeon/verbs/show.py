"""`show`: what a checkpoint or an adapter holds, from headers alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.filesize import pick_unit_and_suffix

from surgeon.anatomy.describe import Anatomy, Place, describe
from surgeon.anatomy.family import Role, families
from surgeon.anatomy.stacks import positions
from surgeon.errors import MismatchError
from surgeon.store.adapter import Adapter, LowRank, Update
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.header import Stored
from surgeon.store.source import open_source
from surgeon.tensors import TensorSpec, human_bytes
from surgeon.verbs._table import table

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_ORDER = ("before", "layer", "after")

#: By the name of a tensor: how its values are held, and the spec of every array that holds them.
Forms = Mapping[str, tuple[str, list[TensorSpec]]]


@dataclass(frozen=True)
class Group:
    """Tensors that are alike but for the numbers in their names; `form` is their dtype and shape, or rank and scale.

    `role` says what they do with the residual stream, where a table of the architecture is declared.
    """

    pattern: str
    form: str
    layers: tuple[int, ...]
    tensors: int
    parameters: int
    bytes: int
    role: str = ""


@dataclass(frozen=True)
class Roles:
    """What is known of a checkpoint's anatomy: its family's table, or in `why_not` why there is none.

    `unknown` are the tensors that no row of the table names.
    """

    family: str | None
    why_not: str = ""
    blocks: int = 0
    width: int = 0
    tied: bool = False
    unknown: tuple[str, ...] = ()

    def explain(self) -> list[str]:
        """One line, and one an unknown tensor."""
        if self.family is None:
            return [f"roles: not known: {self.why_not}; merging needs none, an edit does"]
        tied = "head tied to the embedding" if self.tied else "head of its own"
        lines = [f"roles: table {self.family}, {self.blocks} blocks, stream {self.width} wide, {tied}"]
        if self.unknown:
            lines.append(f"unknown, and possibly writing the stream: {len(self.unknown)}")
            lines += [f"  {name}" for name in self.unknown]
        return lines


@dataclass(frozen=True)
class Contents:
    """What a model holds: its tensors by group, totals, and bytes by dtype. An adapter's tensors are its targets.

    `roles` is None for an adapter.
    """

    model: str
    kind: str
    about: dict[str, Any]
    tensors: int
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    groups: tuple[Group, ...]
    roles: Roles | None = None

    def explain(self) -> str:
        """A line a group, then the totals."""
        about = ", ".join(f"{key} {value}" for key, value in self.about.items())
        title = f"{self.kind} {self.model}" + (f": {about}" if about else "")
        dtypes = ", ".join(f"{dtype} {human_bytes(count)}" for dtype, count in self.dtypes.items())
        size = f"{_millions(self.parameters)} parameters, {human_bytes(self.bytes)} ({dtypes})"
        roles = self.roles.explain() if self.roles else []
        return "\n".join([title, "", *table(map(_row, self.groups)), "", *roles, f"{self.tensors} tensors, {size}"])

    def to_dict(self) -> dict[str, Any]:
        """The same as data."""
        return asdict(self)


def show(model: str | Path) -> Contents:
    """What a folder, file or Hub id holds; no tensor is read."""
    source = open_source(str(model), probe=True)
    if isinstance(source, Adapter):
        about = {"base model": source.config.get("base_model_name_or_path"), "revision": source.revision}
        forms = {name: _update(updates) for name, updates in source.updates.items()}
    else:
        forms = {name: (str(stored.spec), [stored.spec]) for name, stored in source.tensors.items()}
        about = _about(source)
    anatomy, roles = (None, None) if isinstance(source, Adapter) else _anatomy(source)
    groups = _groups(forms, {} if anatomy is None else {name: _role(name, anatomy) for name in forms})
    dtypes: Counter[str] = Counter()
    for spec in (spec for _, specs in forms.values() for spec in specs):
        dtypes[spec.dtype] += spec.nbytes
    return Contents(
        source.ref,
        "adapter" if isinstance(source, Adapter) else "checkpoint",
        {key: value for key, value in about.items() if value},
        len(forms),
        sum(group.parameters for group in groups),
        dtypes.total(),
        dict(dtypes.most_common()),
        groups,
        roles,
    )


def _about(source: Checkpoint) -> dict[str, Any]:
    architecture = ", ".join(source.config.get("architectures") or ()) or source.config.get("model_type")
    return {"architecture": architecture, "revision": source.revision, "files": len(set(source.shard_of.values()))}


def _anatomy(source: Checkpoint) -> tuple[Anatomy | None, Roles]:
    """The anatomy by the table of the config's model_type, or why there is none."""
    specs = {name: stored.spec for name, stored in source.tensors.items()}
    try:
        found = describe(source.config, specs, source.ref)
    except MismatchError as error:
        model_type = str(source.config.get("model_type") or "")
        no_table = f"no table is declared for {model_type!r}" if model_type else "there is no model_type in its config"
        return None, Roles(None, _first(error.message) if model_type in families() else no_table)
    return found, Roles(found.family.name, "", found.blocks, found.width, found.tied, found.unknown)


def _first(message: str) -> str:
    """A message and the first of what it lists, in one line."""
    head, *listed = (line.strip() for line in message.splitlines())
    return " ".join([head, *listed[:1]]) + (f" and {len(listed) - 1} more" if len(listed) > 1 else "")


def _role(name: str, anatomy: Anatomy) -> str:
    """What a tensor does with the residual stream, in words."""
    place = anatomy.places.get(name)
    if place is None:
        return "unknown"
    tied = ", tied" if anatomy.tied and name in (anatomy.embed, anatomy.unembed) else ""
    return _words(place, anatomy.family.gain) + tied


def _words(place: Place, gain: float) -> str:
    if place.role is Role.WRITES_RESIDUAL:
        part = f": {place.part.value}" if place.part else ""
        return f"writes residual{part}" + (", then output norm" if place.norms else "")
    if place.role is Role.OUTPUT_NORM:
        return f"output norm (gain {f'{gain:g}+w' if gain else 'w'})"
    return place.role.value.replace("_", " ")


def _groups(forms: Forms, roles: Mapping[str, str]) -> tuple[Group, ...]:
    """Embeddings, then layer by layer, then norm and head; what no stack is known for comes last."""
    known = positions(forms)

    def place(name: str) -> tuple[int, int, str]:
        found = known.get(name)
        return (_ORDER.index(found.place), found.index, name) if found else (len(_ORDER), 0, name)

    members: dict[tuple[str, str, str], list[str]] = {}
    for name in sorted(forms, key=place):
        members.setdefault((_NUMBER.sub("N", name), forms[name][0], roles.get(name, "")), []).append(name)
    return tuple(_group(*alike, names, forms) for alike, names in members.items())


def _group(pattern: str, form: str, role: str, names: list[str], forms: Forms) -> Group:
    layers = sorted({int(number[0]) for name in names if (number := _NUMBER.search(name))})
    specs = [spec for name in names for spec in forms[name][1]]
    size = sum(spec.count for spec in specs), sum(spec.nbytes for spec in specs)
    return Group(pattern, form, tuple(layers), len(names), *size, role)


def _update(updates: Iterable[Update]) -> tuple[str, list[TensorSpec]]:
    """What an adapter does to one tensor, and the specs of the arrays that say so."""
    forms: list[str] = []
    arrays: list[Stored | None] = []
    for update in updates:
        if isinstance(update, LowRank):
            shape, kind = list(update.shape), "DoRA" if update.magnitude else "LoRA"
            a = update.a.spec
            forms.append(f"{kind} rank {a.shape[0]}, scale {update.scale:g}, {a.dtype}{shape}")
            arrays += [update.a, update.b, update.magnitude]
        else:
            forms.append(f"replaced {update.value.spec}")
            arrays.append(update.value)
    return " + ".join(forms), [array.spec for array in arrays if array is not None]


def _row(group: Group) -> tuple[str, ...]:
    layers = f"layers {_ranges(group.layers)}" if group.layers else ""
    form = f"{group.tensors} × {group.form}" if group.tensors > 1 else group.form
    return group.pattern, layers, form, _millions(group.parameters), human_bytes(group.bytes), group.role


def _ranges(numbers: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) → '0-2, 5'."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ", ".join(str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True))


def _millions(count: int) -> str:
    """134515008 → '134.5 M'."""
    size, unit = pick_unit_and_suffix(count, ["", " k", " M", " B"], 1000)
    return f"{count / size:.1f}{unit}" if unit else str(count)
