"""Edits and reshapes, resolved: which tensors are edited along which columns, and what is promised of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.anatomy.describe import Anatomy, Place
from surgeon.artifacts.direction import OWN, OWN_MID, Direction
from surgeon.errors import RefusedError
from surgeon.planning.step import Input, Key
from surgeon.space.coefficient import Coefficient
from surgeon.space.edit import EditMethod
from surgeon.space.expr import ONE, Settings
from surgeon.space.reshape import Drawn, Rows, Table
from surgeon.space.sides import Sides
from surgeon.tensors import TensorSpec

if TYPE_CHECKING:
    from surgeon.planning.graph import Graph
    from surgeon.planning.resolve import Node


@dataclass(frozen=True)
class Along:
    """A direction in hand and where it is used: a point, or ``own`` (``own.mid``): each writer's own point."""

    direction: Direction
    at: str
    name: str

    def point(self, place: Place) -> str:
        """The residual point whose rows a writer uses."""
        return place.point(mid=self.at == OWN_MID) if self.at in (OWN, OWN_MID) else self.at


@dataclass(frozen=True, eq=False)
class Edited:
    """An edit of `chosen` tensors of a node; the others are the node's own.

    `follows` holds a head that is stored though tied: it gets what the embedding gets.
    """

    label: str
    inner: Node
    method: EditMethod[...]
    along: tuple[Along, ...]
    settings: Settings
    anatomy: Anatomy
    chosen: Mapping[str, Place]
    follows: Mapping[str, str] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        """The operand's."""
        return self.inner.table

    @property
    def config(self) -> Mapping[str, Any]:
        """The operand's."""
        return self.inner.config

    @property
    def sides(self) -> Sides:
        """The operand's."""
        return self.inner.sides

    @property
    def mass(self) -> Coefficient:
        """The operand's: a linear edit keeps it, and another takes models only."""
        return self.inner.mass

    def lower(self, tensor: str, graph: Graph) -> Key | None:
        """One step of the edit's kernel; the operand's own value where nothing changes."""
        if tensor in self.follows:
            return graph.key(self, self.follows[tensor])
        key, place = graph.key(self.inner, tensor), self.chosen.get(tensor)
        if key is None or place is None:
            return key
        settings = self._settings(tensor, graph)
        if self.method.holds(self.method.unchanged, settings):
            return key
        shape = self.table[tensor].shape
        inputs = [Input(key)]
        if self.along:
            frame = self._frame(tensor, place, graph)
            inputs.append(Input(frame, whole=True))
            settings |= {"frame rank": graph.steps[frame].spec.shape[1]}
        layout = "@last" if place.axis == -1 else ""
        if not layout:
            settings |= {"frame residual": shape[-2], "frame columns": shape[-1]}
        return graph.add(self, tensor, f"edit:{self.method.name}{layout}", tuple(inputs), settings)

    def _frame(self, tensor: str, place: Place, graph: Graph) -> Key:
        """The step of the columns; writers of one block behind one norm share it."""
        used = tuple((along.direction, along.point(place)) for along in self.along)
        rank = sum(len(direction.rows(point)) for direction, point in used)
        gains = [graph.key(self.inner, norm) for norm in place.norms]
        inputs = tuple(Input(gain, whole=True) for gain in gains if gain is not None)
        spec = TensorSpec("F64", (self.anatomy.width, rank))
        written = tuple(graph.written(self, norm) for norm in place.norms)
        settings: dict[str, Any] = {"directions": used, "gain": self.anatomy.family.gain, "written": written}
        return graph.add(self, tensor, "frame:columns", inputs, settings, "frame", spec)

    def _settings(self, tensor: str, graph: Graph) -> dict[str, Any]:
        """What holds at a tensor, by argument."""
        given = dict(self.settings)
        found: dict[str, Any] = {}
        for parameter in self.method.parameters.values():
            setting = given.get(parameter.name)
            value = None if setting is None else graph.setting(setting, self, tensor, head_first=False)
            if value is not None:
                found[parameter.argument] = graph.plain(value, parameter)
            elif parameter.required:
                raise RefusedError(f"{self.method.name}: nothing says what {parameter.name} is at {tensor}")
            else:
                found[parameter.argument] = parameter.default
        return found


@dataclass(frozen=True, eq=False)
class Reshaped:
    """A reshape of nodes."""

    label: str
    inner: tuple[Node, ...]
    drawn: Mapping[str, Drawn]
    table: Table
    config: Mapping[str, Any]
    sides: Sides
    notes: tuple[str, ...] = ()

    @property
    def mass(self) -> Coefficient:
        """Its parts are models, and so is it."""
        return ONE

    def lower(self, tensor: str, graph: Graph) -> Key | None:
        """The part's tensor it holds, or a step of the kernel that makes it of whole tensors."""
        drawn = self.drawn[tensor]
        if drawn.rows:
            return self._gathered(tensor, drawn, graph)
        keys = [key for part, name in drawn.inputs if (key := graph.key(self.inner[part], name)) is not None]
        if not drawn.kernel:
            return keys[0]
        inputs = tuple(Input(key, whole=True) for key in keys)
        return graph.add(self, tensor, drawn.kernel, inputs, dict(drawn.settings))

    def _gathered(self, tensor: str, drawn: Drawn, graph: Graph) -> Key:
        """The step that takes rows of its inputs, and one more that pads them."""
        keys = [graph.key(self.inner[part], name) for part, name in drawn.inputs]
        inputs = tuple(Input(key, rows=rows) for key, rows in zip(keys, drawn.rows, strict=True) if key is not None)
        having = sum((rows.index >= 0).astype(np.int32) for rows in drawn.rows)
        settings: dict[str, Any] = {"shares": None if np.all(having == 1) else Rows(np.asarray(having))}
        if not drawn.padding:
            return graph.add(self, tensor, "rows:gather", inputs, settings)
        count, shape = len(drawn.rows[0].index), self.table[tensor].shape
        spec = TensorSpec("F32", (count, *shape[1:]))
        gathered = graph.add(self, tensor, "rows:gather", inputs, settings, "rows", spec)
        index = np.concatenate([np.arange(count, dtype=np.int32), np.full(drawn.padding, -1, np.int32)])
        padding = {"rows": count, "columns": math.prod(shape[1:])}
        return graph.add(self, tensor, "rows:padded", (Input(gathered, rows=Rows(index)),), padding)
