"""What a comparison found, in words and as data."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from surgeon.anatomy.stacks import Position, positions
from surgeon.measuring.difference import Difference

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_SHOWN = 40


@dataclass(frozen=True)
class DiffReport:
    """Two checkpoints compared; `differing` has an entry for every tensor whose bytes are not the same."""

    a: str
    b: str
    tensors: tuple[str, ...]
    differing: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    shapes: Mapping[str, tuple[str, str]]
    config: tuple[tuple[str, Any, Any], ...]
    files: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.differing or self.only_a or self.only_b or self.shapes or self.config or self.files)

    def explain(self) -> str:
        """By layer, by pattern, by tensor, then files; one sentence at the end."""
        lines = [f"only in a: {name}" for name in self.only_a] + [f"only in b: {name}" for name in self.only_b]
        lines += [f"{name}: {one} in a, {other} in b" for name, (one, other) in self.shapes.items()]
        lines += _table("by layer", grouped(self.differing, self._layer))
        lines += _table("by pattern", grouped(self.differing, pattern))
        largest = sorted(self.differing, key=lambda item: -item.relative)
        lines += _table("by tensor", {item.name: [item] for item in largest[:_SHOWN]})
        lines += [f"… and {len(largest) - _SHOWN} more tensors"] if len(largest) > _SHOWN else []
        lines += [f"config.json: {path}: {was!r} → {now!r}" for path, was, now in self.config]
        lines += [f"other bytes: {name}" for name in self.files]
        return "\n".join([*lines, *([""] if lines else []), self.sentence()])

    def sentence(self) -> str:
        """The whole in one sentence."""
        if self.same:
            return f"{self.b} is the same as {self.a}: {len(self.tensors)} tensors, byte for byte."
        parts = [f"{len(self.differing)} of {len(self.tensors)} tensors differ{self._where()}{self._rank()}"]
        nans = sum(bool(item.nans) for item in self.differing)
        parts += [f"{nans} hold NaN"] if nans else []
        parts += [f"{len(self.shapes)} have other shapes"] if self.shapes else []
        parts += [f"{len(self.only_a)} are only in {self.a}"] if self.only_a else []
        parts += [f"{len(self.only_b)} are only in {self.b}"] if self.only_b else []
        parts += [f"config.json differs in {len(self.config)} key(s)"] if self.config else []
        return "; ".join(parts) + "."

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {
            "a": self.a, "b": self.b, "same": self.same, "sentence": self.sentence(), "tensors": len(self.tensors),
            "differing": {item.name: _as_dict(item) for item in self.differing},
            "layers": {name: _summed(items) for name, items in grouped(self.differing, self._layer).items()},
            "patterns": {name: _summed(items) for name, items in grouped(self.differing, pattern).items()},
            "only_a": list(self.only_a), "only_b": list(self.only_b),
            "shapes": {name: list(pair) for name, pair in self.shapes.items()},
            "config": {path: [was, now] for path, was, now in self.config}, "files": list(self.files),
        }  # fmt: skip

    def _layer(self, name: str) -> str:
        position = self._positions.get(name)
        return (
            "unknown"
            if position is None
            else f"layer {position.index}"
            if position.place == "layer"
            else position.place
        )

    @cached_property
    def _positions(self) -> Mapping[str, Position]:
        return positions(self.tensors)

    def _where(self) -> str:
        known = self._positions
        places = [known.get(item.name) for item in self.differing]
        if not places or any(place is None or place.place != "layer" for place in places):
            return ""
        layers = sorted({place.index for place in places if place is not None})
        run = layers == list(range(layers[0], layers[-1] + 1))
        listed = f"{layers[0]}–{layers[-1]}" if run and len(layers) > 1 else ", ".join(map(str, layers))
        return f", all in layer{'s' if len(layers) > 1 else ''} {listed}"

    def _rank(self) -> str:
        ranks = [item.rank for item in self.differing if item.rank is not None]
        if not ranks or any(rank.rank is None for rank in ranks):
            return ""
        return f", rank {max(ranks, key=lambda rank: rank.rank or 0)}"


def pattern(name: str) -> str:
    """A tensor's name with its numbers as stars."""
    return _NUMBER.sub("*", name)


def grouped(items: Sequence[Difference], key: Any) -> dict[str, list[Difference]]:
    """The differences by a property of their names, in order."""
    groups: dict[str, list[Difference]] = {}
    for item in items:
        groups.setdefault(key(item.name), []).append(item)
    return groups


def _summed(items: Sequence[Difference]) -> dict[str, Any]:
    square, base = sum(item.square for item in items), sum(item.square_a for item in items)
    relative = math.sqrt(square / base) if base else math.inf
    ulps = [item.ulps for item in items if item.ulps is not None]
    ranks = [item.rank for item in items if item.rank is not None]
    highest = max(ranks, key=lambda rank: math.inf if rank.rank is None else rank.rank, default=None)
    return {
        "tensors": len(items),
        "relative": _plain(relative),
        "largest": _plain(max(item.largest for item in items)),
        "changed": sum(item.changed for item in items) / max(sum(item.entries for item in items), 1),
        "ulps": max(ulps) if ulps else None,
        "nans": sum(item.nans for item in items),
        "rank": None if highest is None else str(highest),
    }


def _as_dict(item: Difference) -> dict[str, Any]:
    stable = item.rank.stable if item.rank is not None else None
    return _summed([item]) | {"dtype": item.dtype, "stable_rank": stable}


def _plain(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def _table(title: str, groups: Mapping[str, Sequence[Difference]]) -> list[str]:
    if not groups:
        return []
    width = max(len(name) for name in groups)
    lines = [f"{title}:"]
    for name, items in groups.items():
        facts = _summed(items)
        relative = "—" if facts["relative"] is None else f"{facts['relative']:.2e}"
        cells = [f"‖b−a‖/‖a‖ {relative}", f"{facts['changed']:.1%} of entries"]
        cells += [f"largest {facts['largest']:.2e}"] if facts["largest"] is not None else []
        cells += [f"≤ {facts['ulps']} ulp"] if facts["ulps"] is not None else []
        cells += [f"rank {facts['rank']}"] if facts["rank"] else []
        cells += [f"{facts['nans']} NaN"] if facts["nans"] else []
        lines.append(f"  {name:{width}}  " + ", ".join(cells))
    return [*lines, ""]
