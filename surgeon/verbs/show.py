"""`show`: what a checkpoint or an adapter holds, from headers alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.anatomy.stacks import positions
from surgeon.store.adapter import Adapter, LowRank, Update
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.source import open_source
from surgeon.tensors import TensorSpec, human_bytes

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_ORDER = {"before": 0, "layer": 1, "after": 2}


@dataclass(frozen=True)
class Group:
    """Tensors that are alike but for the numbers in their names; `form` is their dtype and shape, or rank and scale."""

    pattern: str
    form: str
    layers: tuple[int, ...]
    count: int
    parameters: int
    nbytes: int

    def to_dict(self) -> dict[str, Any]:
        """The group as data."""
        return {
            "pattern": self.pattern,
            "form": self.form,
            "layers": list(self.layers),
            "tensors": self.count,
            "parameters": self.parameters,
            "bytes": self.nbytes,
        }


@dataclass(frozen=True)
class Contents:
    """What a model holds: its tensors by group, and totals."""

    ref: str
    kind: str
    about: Mapping[str, Any]
    groups: tuple[Group, ...]
    dtypes: Mapping[str, int]

    @property
    def tensors(self) -> int:
        """Number of tensors; of an adapter, of tensors it changes."""
        return sum(group.count for group in self.groups)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(group.parameters for group in self.groups)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(group.nbytes for group in self.groups)

    def explain(self) -> str:
        """A line a group, then the totals."""
        about = ", ".join(f"{key} {value}" for key, value in self.about.items())
        rows = [_row(group) for group in self.groups]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        dtypes = ", ".join(f"{dtype} {human_bytes(count)}" for dtype, count in self.dtypes.items())
        totals = (
            f"{self.tensors} tensors, {_millions(self.parameters)} parameters, {human_bytes(self.nbytes)} ({dtypes})"
        )
        return "\n".join([f"{self.kind} {self.ref}" + (f": {about}" if about else ""), "", *table, "", totals])

    def to_dict(self) -> dict[str, Any]:
        """The same as data."""
        return {
            "model": self.ref,
            "kind": self.kind,
            "about": dict(self.about),
            "tensors": self.tensors,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "dtypes": dict(self.dtypes),
            "groups": [group.to_dict() for group in self.groups],
        }


def show(model: str | Path) -> Contents:
    """What a folder, file or Hub id holds; no tensor is read."""
    source = open_source(str(model), probe=True)
    return _adapter(source) if isinstance(source, Adapter) else _checkpoint(source)


def _checkpoint(source: Checkpoint) -> Contents:
    forms = {name: (str(stored.spec), [stored.spec]) for name, stored in source.tensors.items()}
    config = source.config
    about = {
        "architecture": ", ".join(config.get("architectures") or ()) or config.get("model_type"),
        "revision": source.revision,
        "files": len(set(source.shard_of.values())),
    }
    return _contents(source.ref, "checkpoint", about, forms)


def _adapter(source: Adapter) -> Contents:
    forms = {name: (_form(updates), _specs(updates)) for name, updates in source.updates.items()}
    about = {"base model": source.config.get("base_model_name_or_path"), "revision": source.revision}
    return _contents(source.ref, "adapter", about, forms)


def _contents(
    ref: str, kind: str, about: Mapping[str, Any], forms: Mapping[str, tuple[str, list[TensorSpec]]]
) -> Contents:
    members: dict[tuple[str, str], list[str]] = {}
    dtypes: Counter[str] = Counter()
    for name in _in_order(forms):
        form, specs = forms[name]
        members.setdefault((_NUMBER.sub("N", name), form), []).append(name)
        for spec in specs:
            dtypes[spec.dtype] += spec.nbytes
    groups = (_group(pattern, form, names, forms) for (pattern, form), names in members.items())
    known = {key: value for key, value in about.items() if value}
    return Contents(ref, kind, known, tuple(groups), dict(dtypes.most_common()))


def _group(pattern: str, form: str, names: list[str], forms: Mapping[str, tuple[str, list[TensorSpec]]]) -> Group:
    numbers = {int(number[0]) for name in names if (number := _NUMBER.search(name))}
    specs = [spec for name in names for spec in forms[name][1]]
    parameters, nbytes = sum(spec.count for spec in specs), sum(spec.nbytes for spec in specs)
    return Group(pattern, form, tuple(sorted(numbers)), len(names), parameters, nbytes)


def _in_order(names: Iterable[str]) -> list[str]:
    """Embeddings, then layer by layer, then norm and head; what no stack is known for comes last."""
    names = list(names)
    found = positions(names)

    def place(name: str) -> tuple[int, int]:
        position = found.get(name)
        return (_ORDER[position.place], position.index) if position else (len(_ORDER), 0)

    return sorted(names, key=lambda name: (*place(name), name))


def _form(updates: Iterable[Update]) -> str:
    return " + ".join(
        _low_rank(update) if isinstance(update, LowRank) else f"replaced {update.value.spec}" for update in updates
    )


def _low_rank(update: LowRank) -> str:
    rows, columns = update.shape
    kind = "DoRA" if update.magnitude else "LoRA"
    return f"{kind} rank {update.a.spec.shape[0]}, scale {update.scale:g}, {update.a.spec.dtype}[{rows}, {columns}]"


def _specs(updates: Iterable[Update]) -> list[TensorSpec]:
    found: list[TensorSpec] = []
    for update in updates:
        parts = (update.a, update.b, update.magnitude) if isinstance(update, LowRank) else (update.value,)
        found += [stored.spec for stored in parts if stored is not None]
    return found


def _row(group: Group) -> tuple[str, ...]:
    layers = f"layers {_ranges(group.layers)}" if group.layers else ""
    count = f"{group.count} ×" if group.count > 1 else ""
    return (
        group.pattern,
        layers,
        f"{count} {group.form}".strip(),
        _millions(group.parameters),
        human_bytes(group.nbytes),
    )


def _ranges(numbers: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) → '0-2, 5'."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ", ".join(str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True))


def _millions(count: int) -> str:
    """134515008 → '134.5 M'."""
    for size, unit in ((10**9, " B"), (10**6, " M"), (10**3, " k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
