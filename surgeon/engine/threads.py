"""Torch on one thread: matrix products and sums change with its own threads; parallelism is over tensors instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Set torch to one thread for a while; worker threads call `torch.set_num_threads(1)` themselves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
