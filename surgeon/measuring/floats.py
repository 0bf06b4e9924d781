"""A checkpoint's tensor as numbers, whatever it is stored as: codes of a quantised weight through their scales."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from surgeon.engine.reading import DiskReader, Files
from surgeon.measuring.reading import elements
from surgeon.planning.evaluation import Evaluator
from surgeon.planning.graph import Graph
from surgeon.planning.nodes import Point
from surgeon.space.sides import Sides
from surgeon.store.checkpoint import Checkpoint


def floats(checkpoint: Checkpoint, name: str, files: Files) -> Callable[[int, int], Tensor]:
    """What reads elements start to stop of a tensor, flat."""
    if checkpoint.quantised is None or name not in checkpoint.quantised.packed:
        return partial(elements, files, checkpoint.tensors[name])
    graph, node = Graph(), Point(checkpoint.ref, checkpoint, checkpoint.table, Sides(checkpoint.ref))
    key = graph.key(node, name)
    assert key is not None
    return partial(Evaluator(graph.steps, DiskReader(files, torch.device("cpu")), {}).value, key)
