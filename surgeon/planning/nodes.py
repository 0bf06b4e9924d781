"""The nodes planning knows: a point on disk, a difference on a base, a sum, a merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from surgeon.artifacts.banded import Banded
from surgeon.errors import MismatchError, Origin, RefusedError
from surgeon.planning.core_space import factored, in_core_space
from surgeon.planning.entries import place_entries
from surgeon.planning.quantising import unpacked
from surgeon.planning.step import Input, Key
from surgeon.space.coefficient import Coefficient
from surgeon.space.expr import ONE, DataFit, MergeSettings
from surgeon.space.parameters import Each, Parameter
from surgeon.space.schedule import Layers, Rules
from surgeon.space.sides import Sides
from surgeon.store.adapter import LowRank, Replacement

if TYPE_CHECKING:
    from surgeon.artifacts.per_tensor import PerTensor
    from surgeon.planning.graph import Graph
    from surgeon.planning.resolve import Node, Table
    from surgeon.space.method import MergeMethod
    from surgeon.store.adapter import Adapter
    from surgeon.store.checkpoint import Checkpoint

ZERO = Coefficient(Fraction(0))


@dataclass(frozen=True, eq=False)
class Point:
    """A checkpoint."""

    label: str
    source: Checkpoint
    table: Table
    sides: Sides

    @property
    def config(self) -> Mapping[str, Any]:
        """Its config.json."""
        return self.source.config

    @property
    def mass(self) -> Coefficient:
        """One."""
        return ONE

    def lower(self, tensor: str, graph: Graph) -> Key | None:
        """The bytes on disk; of a quantised weight, what they stand for."""
        packed = self.source.quantised.packed.get(tensor) if self.source.quantised is not None else None
        if packed is not None:
            return unpacked(self, tensor, packed, graph)
        return graph.load(self, tensor, self.source.tensors[tensor])


@dataclass(frozen=True, eq=False)
class Delta:
    """An adapter, standing on a base whose tensors it changes."""

    label: str
    source: Adapter
    base: Node
    updates: Mapping[str, tuple[LowRank | Replacement, ...]]

    @property
    def table(self) -> Table:
        """The base's: a difference has the shape of what it stands on."""
        return self.base.table

    @property
    def config(self) -> Mapping[str, Any]:
        """The base's."""
        return self.base.config

    @property
    def sides(self) -> Sides:
        """The base's."""
        return self.base.sides

    @property
    def mass(self) -> Coefficient:
        """Zero."""
        return ZERO

    def lower(self, tensor: str, graph: Graph) -> Key | None:
        """The sum of its updates of a tensor; None when it does not touch it."""
        if tensor not in self.updates:
            return None
        if not self.table[tensor].is_float:
            raise MismatchError(f"{self.label} changes {tensor}, which is {self.table[tensor].dtype}: not a float")
        parts, standing = [], graph.key(self.base, tensor)
        assert standing is not None
        for number, update in enumerate(self.updates[tensor]):
            part, standing = self._update(tensor, update, str(number), standing, graph)
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        settings = {"coefficients": (1.0,) * len(parts), "points": 0, "anchored": False, "mass": 0.0}
        return graph.add(self, tensor, "combine", tuple(Input(part) for part in parts), settings)

    def _update(
        self, tensor: str, update: LowRank | Replacement, part: str, standing: Key, graph: Graph
    ) -> tuple[Key, Key]:
        """The step of one update, and the value the next one stands on: a replaced tensor may be adapted too."""
        if isinstance(update, Replacement):
            value = graph.load(self, tensor, update.value, f"{part}.value")
            settings = {"coefficients": (1.0,), "points": 1, "anchored": True, "mass": 0.0}
            return graph.add(self, tensor, "combine", (Input(standing), Input(value)), settings, part), value
        factors = tuple(
            Input(graph.load(self, tensor, stored, f"{part}.{name}"), whole=True)
            for name, stored in (("A", update.a), ("B", update.b), ("m", update.magnitude))
            if stored is not None
        )
        settings = {"scale": update.scale, "transposed": update.transposed}
        if update.magnitude is None:
            return graph.add(self, tensor, "low_rank", factors, settings, part), standing
        return graph.add(self, tensor, "dora", (Input(standing), *factors), settings, part), standing


@dataclass(frozen=True, eq=False)
class Sum:
    """A combination: points, the first of which anchors it, and differences."""

    label: str
    table: Table
    points: tuple[tuple[Node, Coefficient], ...]
    differences: tuple[tuple[Node, Coefficient], ...]
    mass: Coefficient

    @property
    def config(self) -> Mapping[str, Any]:
        """That of its first point; of differences alone, their base's."""
        return (self.points or self.differences)[0][0].config

    @property
    def sides(self) -> Sides:
        """Those of its first point."""
        return (self.points or self.differences)[0][0].sides

    def lower(self, tensor: str, graph: Graph) -> Key | None:
        """One `combine` step of the terms that matter here; the anchor itself when it alone is left."""
        if not self.table[tensor].is_float:
            return self._unchanged(tensor, graph)
        anchor = graph.key(self.points[0][0], tensor) if self.points else None
        mass = graph.number(self.mass, self, tensor)
        points = self._terms(self.points[1:], tensor, graph)
        differences = self._terms(self.differences, tensor, graph)
        if not points and not differences:
            return anchor if mass == 1 else None
        settings = {
            "coefficients": tuple(float(c) for _, c in (*points, *differences)),
            "points": len(points),
            "anchored": anchor is not None and (bool(points) or mass == 1),
            "mass": float(mass),
        }
        keys = [key for key, _ in (*points, *differences)]
        inputs = [anchor, *keys] if settings["anchored"] else keys
        return graph.add(self, tensor, "combine", tuple(Input(key) for key in inputs if key), settings)

    def _terms(
        self, terms: tuple[tuple[Node, Coefficient], ...], tensor: str, graph: Graph
    ) -> list[tuple[Key, Fraction]]:
        weighed = [(node, graph.number(coefficient, self, tensor)) for node, coefficient in terms]
        keyed = [(graph.key(node, tensor), coefficient) for node, coefficient in weighed if coefficient]
        return [(key, coefficient) for key, coefficient in keyed if key is not None]

    def _unchanged(self, tensor: str, graph: Graph) -> Key | None:
        for node, _ in self.differences:
            graph.key(node, tensor)
        keys = tuple(dict.fromkeys(graph.key(node, tensor) for node, _ in self.points))
        return same_bytes(self, tensor, keys, graph)


@dataclass(frozen=True, eq=False)
class Mix:
    """A merge method over members, each with settings of its own."""

    label: str
    method: MergeMethod[...]
    base: Node | None
    members: tuple[tuple[Node, MergeSettings], ...]
    settings: MergeSettings
    semantics: str
    measured: Mapping[str, tuple[PerTensor | None, ...]] = field(default_factory=dict)
    origin: Origin | None = None
    _fixed: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        """The base's, else the first member's."""
        return (self.base or self.members[0][0]).table

    @property
    def config(self) -> Mapping[str, Any]:
        """The base's, else the first member's."""
        return (self.base or self.members[0][0]).config

    @property
    def sides(self) -> Sides:
        """The base's, else the first member's."""
        return (self.base or self.members[0][0]).sides

    @property
    def mass(self) -> Coefficient:
        """A merge of models is a model."""
        return ONE

    def lower(self, tensor: str, graph: Graph) -> Key | None:
        """One step of the method's kernel; the base itself when no member differs from it here."""
        base = graph.key(self.base, tensor) if self.base is not None else None
        keys = [graph.key(node, tensor) for node, _ in self.members]
        if not self.table[tensor].is_float:
            points = [key for key in (base, *keys) if key is not None]
            return same_bytes(self, tensor, tuple(dict.fromkeys(points)), graph)
        settings = self.settings_at(tensor, graph)
        if all(key is None or key == base for key in keys):
            return base
        if len(keys) == 1 and self.method.unchanged_at(settings):
            return keys[0]
        if self.method.equivariant and (members := factored(graph.steps, keys, base)) is not None:
            return in_core_space(self, tensor, graph, members, settings)
        self._check_banded(tensor, settings)
        filled = [key or graph.add(self, tensor, "zeros", (), part=f"zero{i}") for i, key in enumerate(keys)]
        inputs = tuple(Input(key) for key in (base, *filled) if key)
        entries = place_entries(self.label, self.method, self.measured, tensor, self.table[tensor].shape)
        settings |= {**entries.settings, "models": len(inputs)} if self.method.per_tensor else {}
        for number, stored in enumerate(entries.stored):
            key = graph.load(self, tensor, stored, f"entry{number}")
            inputs += (Input(key, whole=not entries.aligned),)
        return graph.add(self, tensor, f"merge:{self.method.name}", inputs, settings)

    def settings_at(self, tensor: str, graph: Graph) -> dict[str, Any]:
        """What holds at a tensor; what does not vary over the tensors is worked out once."""
        found = dict(self._fixed)
        found |= self._resolved([p for p in self._plain() if p.argument not in found], tensor, graph)
        if not self._fixed:
            levels = (self.settings, *(own for _, own in self.members))
            varying = {name for level in levels for name, value in level if isinstance(value, Layers | Rules)}
            constant = (p for p in self._plain() if p.name not in varying)
            self._fixed.update({p.argument: found[p.argument] for p in constant})
            self._fixed["differences"] = tuple(node.mass.is_number(0) for node, _ in self.members)
            self._fixed["labels"] = _distinct([node.label for node, _ in self.members])
            found |= self._fixed
        if fault := self.method.fault(found, len(self.members)):
            raise RefusedError(f"{self.method.name}: {fault} ({tensor})", origin=self.origin)
        return found

    def _check_banded(self, tensor: str, settings: Mapping[str, Any]) -> None:
        """Refuse artifacts that do not fit a tensor, before any is read."""
        for value in settings.values():
            if isinstance(value, Banded) and (
                misfit := value.misfit(tensor, self.table[tensor].shape, settings["labels"])
            ):
                misfit.origin = self.origin
                raise misfit

    def _plain(self) -> list[Parameter]:
        """The settings that are the same kind of thing at every tensor: not what has an entry for each."""
        return [parameter for parameter in self.method.parameters.values() if not parameter.per_tensor]

    def _resolved(self, parameters: list[Parameter], tensor: str, graph: Graph) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for parameter in parameters:
            if parameter.per_model:
                values = (self._value(parameter, own, tensor, graph) for _, own in self.members)
                found[parameter.argument] = tuple(values)
            else:
                found[parameter.argument] = self._value(parameter, (), tensor, graph)
        return found

    def _value(self, parameter: Parameter, own: MergeSettings, tensor: str, graph: Graph) -> Any:
        for level in (own, self.settings):
            for name, setting in level:
                if name == parameter.name and not isinstance(setting, DataFit):
                    value = graph.setting(setting, self, tensor, head_first=self.semantics == "mergekit")
                    if value is not None:
                        return graph.plain(value, parameter)
        if parameter.required:
            raise RefusedError(
                f"{self.method.name}: no rule of {parameter.name!r} fits {tensor}, and it has no default"
            )
        return parameter.default.value if isinstance(parameter.default, Each) else parameter.default


def _distinct(labels: list[str]) -> tuple[str, ...]:
    """What tells models apart in noise: two of one name must not draw the same numbers."""
    again = (labels[:at].count(label) for at, label in enumerate(labels))
    return tuple(f"{label}\0{number}" if number else label for label, number in zip(labels, again, strict=True))


def same_bytes(node: Node, tensor: str, keys: tuple[Key | None, ...], graph: Graph) -> Key | None:
    """A tensor that is not a float must be the same in all inputs: the key of the first, or of a step that checks."""
    stored: dict[Key, None] = {}
    for key in keys:
        if key is not None:
            step = graph.steps[key]
            stored |= dict.fromkeys([need.key for need in step.inputs] if step.kernel == "same" else [key])
    if len(stored) == 1:
        return next(iter(stored))
    return graph.add(node, tensor, "same", tuple(map(Input, stored)))
