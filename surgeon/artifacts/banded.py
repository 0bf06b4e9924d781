"""Artifacts that a merge method is given band by band: what they hold for the rows of a tensor that it works on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from surgeon.artifacts.artifact import Artifact
from surgeon.errors import MismatchError


@dataclass(frozen=True, eq=False)
class Banded(Artifact):
    """Small data about the tensors of several models, in memory; an output that rests on it keeps a copy.

    `labels` are the names of a merge's models in its order, `shape` is the whole tensor's.
    """

    @abstractmethod
    def misfit(self, tensor: str, shape: Sequence[int], labels: Sequence[str]) -> MismatchError | None:
        """Why it cannot be used for a tensor of these models; None where it can."""

    @abstractmethod
    def at(self, tensor: str, shape: Sequence[int], rows: slice, labels: Sequence[str]) -> Self:
        """What it holds for a band of rows (runs along the last axis) of a tensor, the models in this order."""

    @classmethod
    @abstractmethod
    def sample(cls, labels: Sequence[str], tensor: str, shape: Sequence[int]) -> Self:
        """One for these models and this tensor, by which laws are tested; it leaves the first model as it is."""
