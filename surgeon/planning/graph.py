"""The graph of steps: each (node, tensor) pair once, with the settings that hold at that tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.anatomy.stacks import Position, positions
from surgeon.artifacts.artifact import Artifact
from surgeon.errors import MismatchError, RefusedError
from surgeon.planning.step import Input, Key, Step, Steps
from surgeon.space.coefficient import Coefficient
from surgeon.space.parameters import Parameter
from surgeon.space.schedule import Layers, Scalar, Setting, UnknownLayer, value_at
from surgeon.tensors import TensorSpec

if TYPE_CHECKING:
    from surgeon.planning.resolve import Node, Table

_NONE = object()
#: What float32 does not hold.
_WIDE = ("F64", "I32", "U32", "I64", "U64")


@dataclass(eq=False)
class Graph:
    """Steps built so far, for one expression.

    `dtypes` is what the result's tensors are written in, `cast` the dtype asked for, of any floating tensor.
    """

    dtypes: Mapping[str, str] = field(default_factory=dict)
    cast: str | None = None
    steps: Steps = field(default_factory=Steps)
    _lowered: dict[tuple[int, str], Any] = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)
    _names: dict[int, dict[Key | None, list[str]]] = field(default_factory=dict)
    _tensors: dict[str, int] = field(default_factory=dict)
    _plain: dict[tuple[Parameter, type, Scalar], Any] = field(default_factory=dict)
    _positions: dict[int, tuple[Table, Mapping[str, Position]]] = field(default_factory=dict)
    _values: dict[tuple[int, Position, bool] | None, Scalar | None] = field(default_factory=dict)

    def key(self, node: Node, tensor: str) -> Key | None:
        """The key of one tensor of a node, lowering it the first time it is asked for."""
        pair = id(node), tensor
        found = self._lowered.get(pair, _NONE)
        if found is _NONE:
            found = self._lowered[pair] = node.lower(tensor, self)
        return found

    def names(self, node: Node) -> Mapping[Key | None, list[str]]:
        """What the tensors of a node are called, by value."""
        if id(node) not in self._names:
            found = self._names[id(node)] = {}
            for name in node.table:
                found.setdefault(self.key(node, name), []).append(name)
        return self._names[id(node)]

    def add(
        self,
        node: Node,
        tensor: str,
        kernel: str,
        inputs: tuple[Input, ...],
        settings: Mapping[str, Any] | None = None,
        part: str = "",
        spec: TensorSpec | None = None,
    ) -> Key:
        """Add a step; `part` names a value of its own beside the node's tensor (a factor, one update of several).

        `spec` is given where the value has another shape than the tensor.
        """
        number = self._numbers.setdefault(id(node), len(self._numbers))
        key = Key(number, f"{tensor}\0{part}" if part else tensor)
        wide = any(self.steps[need.key].wide for need in inputs) and spec is None
        spec = spec or TensorSpec("F64" if wide else "F32", node.table[tensor].shape)
        place = self._tensors.setdefault(tensor, len(self._tensors))
        chosen = tuple(sorted((settings or {}).items()))
        self.steps[key] = Step(key, spec, kernel, inputs, chosen, wide=wide, number=place)
        return key

    def load(self, node: Node, tensor: str, stored: Any, part: str = "") -> Key:
        """Add a step that reads bytes on disk."""
        number = self._numbers.setdefault(id(node), len(self._numbers))
        key = Key(number, f"{tensor}\0{part}" if part else tensor)
        self.steps[key] = Step(key, stored.spec, "load", stored=stored, wide=stored.spec.dtype in _WIDE)
        return key

    def plain(self, value: Scalar, parameter: Parameter) -> Any:
        """The value a kernel gets: numbers rounded once to float, artifacts read, each once. RefusedError if unfit."""
        known = parameter, type(value), value
        if known not in self._plain:
            if fault := parameter.fault(value):
                raise RefusedError(fault)
            if issubclass(parameter.type, Artifact):
                self._plain[known] = parameter.type.load(Path(str(value)).expanduser())
            else:
                self._plain[known] = parameter.type(value) if isinstance(value, Fraction) else value
        return self._plain[known]

    def written(self, node: Node, tensor: str) -> str:
        """The dtype a tensor of a node is written in; by its own where the result has none of that name."""
        return self.dtypes.get(tensor) or node.table[tensor].cast(self.cast).dtype

    def position(self, node: Node, tensor: str) -> Position | None:
        """The layer of a tensor in its own node's stack: a model cut out of another has its own first and last."""
        held = self._positions.get(id(node.table))
        if held is None:
            held = self._positions[id(node.table)] = node.table, positions(node.table)
        return held[1].get(tensor)

    def number(self, coefficient: Coefficient, node: Node, tensor: str) -> Fraction:
        """A coefficient at one tensor of a node. MismatchError where a schedule does not reach."""
        if not coefficient.scheduled:
            return coefficient.constant
        try:
            value = coefficient.at(tensor, self.position(node, tensor))
        except UnknownLayer:
            raise unknown_layer(tensor) from None
        if value is None:
            raise MismatchError(
                f"no rule of the schedule in {coefficient} fits {tensor}", hint="end the rules with one without targets"
            )
        return value

    def setting(self, setting: Setting, node: Node, tensor: str, *, head_first: bool) -> Scalar | None:
        """A setting at one tensor of a node; None when no rule fits. Lists are interpolated once a layer."""
        position = self.position(node, tensor)
        place = (id(setting), position, head_first) if isinstance(setting, Layers) and position is not None else None
        if place in self._values:
            return self._values[place]
        try:
            value = value_at(setting, tensor, position, head_first=head_first)
        except UnknownLayer:
            raise unknown_layer(tensor) from None
        if place is not None:
            self._values[place] = value
        return value


def unknown_layer(tensor: str) -> MismatchError:
    """A list over the layers met a tensor whose layer no declared layout tells."""
    return MismatchError(
        f"a list over the layers does not say what {tensor} takes: its layer is not known",
        hint="give this tensor a rule with targets, or a plain number",
    )
