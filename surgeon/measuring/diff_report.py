"""What a comparison found, in words and as data."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
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
        lines += _table("by layer", self._grouped(self._layer)) + _table("by pattern", self._grouped(_pattern))
        largest = sorted(self.differing, key=lambda item: -item.relative)
        lines += _table("by tensor", {item.name: _summed([item]) for item in largest[:_SHOWN]})
        lines += [f"… and {len(largest) - _SHOWN} more tensors"] if len(largest) > _SHOWN else []
        lines += [f"config.json: {path}: {was!r} → {now!r}" for path, was, now in self.config]
        lines += [f"other bytes: {name}" for name in self.files]
        return "\n".join([*lines, *([""] if lines else []), self.sentence()])

    def sentence(self) -> str:
        """The whole in one sentence."""
        if self.same:
            return f"{self.b} is the same as {self.a}: {len(self.tensors)} tensors, byte for byte."
        counts = {
            "hold NaN": sum(bool(item.nans) for item in self.differing),
            "have other shapes": len(self.shapes),
            f"are only in {self.a}": len(self.only_a),
            f"are only in {self.b}": len(self.only_b),
        }
        parts = [f"{len(self.differing)} of {len(self.tensors)} tensors differ{self._where()}{self._rank()}"]
        parts += [f"{count} {text}" for text, count in counts.items() if count]
        parts += [f"config.json differs in {len(self.config)} key(s)"] if self.config else []
        return "; ".join(parts) + "."

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {
            "a": self.a, "b": self.b, "same": self.same, "sentence": self.sentence(), "tensors": len(self.tensors),
            "differing": {item.name: _summed([item]) | _details(item) for item in self.differing},
            "layers": self._grouped(self._layer), "patterns": self._grouped(_pattern),
            "only_a": list(self.only_a), "only_b": list(self.only_b),
            "shapes": {name: list(pair) for name, pair in self.shapes.items()},
            "config": {path: [was, now] for path, was, now in self.config}, "files": list(self.files),
        }  # fmt: skip

    def _grouped(self, key: Callable[[str], str]) -> dict[str, dict[str, Any]]:
        """The differences summed up by a property of their names, in order."""
        groups: dict[str, list[Difference]] = {}
        for item in self.differing:
            groups.setdefault(key(item.name), []).append(item)
        return {name: _summed(items) for name, items in groups.items()}

    def _layer(self, name: str) -> str:
        position = self._positions.get(name)
        if position is None:
            return "unknown"
        return f"layer {position.index}" if position.place == "layer" else position.place

    @cached_property
    def _positions(self) -> Mapping[str, Position]:
        return positions(self.tensors)

    def _where(self) -> str:
        places = [self._positions.get(item.name) for item in self.differing]
        layers = sorted({place.index for place in places if place is not None and place.place == "layer"})
        if not layers or any(place is None or place.place != "layer" for place in places):
            return ""
        run = len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1))
        listed = f"{layers[0]}–{layers[-1]}" if run else ", ".join(map(str, layers))
        return f", all in layer{'s' if len(layers) > 1 else ''} {listed}"

    def _rank(self) -> str:
        highest = max((item.rank for item in self.differing if item.rank), default=None)
        return f", rank {highest}" if highest and highest.rank is not None else ""


def _pattern(name: str) -> str:
    """A tensor's name with its numbers as stars."""
    return _NUMBER.sub("*", name)


def _summed(items: Sequence[Difference]) -> dict[str, Any]:
    square, base = sum(item.square for item in items), sum(item.square_a for item in items)
    highest = max((item.rank for item in items if item.rank), default=None)
    return {
        "tensors": len(items),
        "relative": _plain(math.sqrt(square / base) if base else math.inf if square else 0.0),
        "largest": _plain(max(item.largest for item in items)),
        "changed": sum(item.changed for item in items) / max(sum(item.entries for item in items), 1),
        "ulps": max((item.ulps for item in items if item.ulps is not None), default=None),
        "nans": sum(item.nans for item in items),
        "rank": None if highest is None else str(highest),
    }


def _details(item: Difference) -> dict[str, Any]:
    return {"dtype": item.dtype, "stable_rank": item.rank.stable if item.rank else None}


def _plain(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def _table(title: str, groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    width = max(map(len, groups), default=0)
    lines = [f"{title}:"] if groups else []
    for name, facts in groups.items():
        relative = "—" if facts["relative"] is None else f"{facts['relative']:.2e}"
        cells = [f"‖b−a‖/‖a‖ {relative}", f"{facts['changed']:.1%} of entries"]
        cells += [f"largest {facts['largest']:.2e}"] if facts["largest"] is not None else []
        cells += [f"≤ {facts['ulps']} ulp"] if facts["ulps"] is not None else []
        cells += [f"rank {facts['rank']}"] if facts["rank"] else []
        cells += [f"{facts['nans']} NaN"] if facts["nans"] else []
        lines.append(f"  {name:{width}}  " + ", ".join(cells))
    return [*lines, ""] if groups else []
