"""What a reshape is: another table of tensors, where each comes from, and the config change it implies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from surgeon.anatomy.describe import Anatomy
from surgeon.tensors import TensorSpec

Table = Mapping[str, TensorSpec]


class Reshaping(ABC):
    """One reshape; subclasses in `surgeon.reshapes` are found by `name`."""

    name: ClassVar[str]

    @abstractmethod
    def table(self, table: Table, anatomy: Anatomy) -> Table:
        """The tensors of the result."""

    @abstractmethod
    def source(self, tensor: str, anatomy: Anatomy) -> str:
        """Which tensor of the operand a tensor of the result holds."""

    @abstractmethod
    def config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The keys of config.json that change, with their new values."""
