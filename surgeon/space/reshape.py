"""What a reshape is: another table of tensors, where each comes from, and the config change it implies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from surgeon.anatomy.describe import Anatomy, describe
from surgeon.errors import Origin
from surgeon.space.parameters import Parameter
from surgeon.space.sides import Content, Sides
from surgeon.tensors import TensorSpec

Table = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Operand:
    """One part as a reshape sees it: its config.json, the blocks [first, end) or targets asked for, tensors, files.

    `number` is that of the first part that is the same model.
    """

    label: str
    config: Mapping[str, Any]
    layers: tuple[int, int] | None = None
    table: Table = field(default_factory=dict)
    targets: str | None = None
    sides: Sides = field(default_factory=lambda: Sides(""))
    number: int = 0
    origin: Origin | None = None

    @property
    def anatomy(self) -> Anatomy:
        """What its tensors are. MismatchError for a family without a table."""
        return describe(self.config, self.table, self.label)


@dataclass(frozen=True, eq=False)
class Rows:
    """Which row of an input each row is, int32 [rows]; -1 for none."""

    index: np.ndarray


@dataclass(frozen=True)
class Drawn:
    """One tensor of the result: what it is made from, (number of the part, tensor), and the kernel that makes it.

    Without a kernel it holds the one tensor named; a kernel gets whole tensors, of any shapes, and these settings.
    With `rows`, one an input, each of its rows is the mean of those that the inputs have for it, and `padding` more
    rows hold the mean of all of them: such a tensor is never held whole.
    """

    spec: TensorSpec
    inputs: tuple[tuple[int, str], ...]
    kernel: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    rows: tuple[Rows, ...] = ()
    padding: int = 0


class Reshaping(ABC):
    """One reshape; subclasses in `surgeon.reshapes` are found by `name`.

    `operands` are the recipe's keys that name its parts, in the order they are given to it: ``of`` (one), ``with`` (a
    list of further ones) or ``parts`` (a list of ``{of, layers, targets}``). `parameters` are its settings, one value
    each.
    """

    name: ClassVar[str]
    operands: ClassVar[tuple[Literal["of", "with", "parts"], ...]] = ("of",)
    parameters: ClassVar[Mapping[str, Parameter]] = {}

    @abstractmethod
    def tensors(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Mapping[str, Drawn]:
        """The tensors of the result, in order."""

    def notes(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Sequence[str]:
        """What `plan` should warn of."""
        return ()

    @abstractmethod
    def config(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The keys of the first part's config.json that change, with their new values."""

    def files(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Mapping[str, Content | None]:
        """The first part's other files that change: new content, or None for what is left out. None, usually."""
        return {}
