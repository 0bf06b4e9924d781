"""A sink for plans that is a loaded model: the bytes of an output tensor go into the parameter that holds it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import closing
from types import TracebackType

import torch
from torch import Tensor, nn

from surgeon.runtime.load import Loaded
from surgeon.runtime.names import parameter_views
from surgeon.store.checkpoint import open_checkpoint
from surgeon.store.files import Files
from surgeon.store.header import Stored
from surgeon.tensors import BITS, TensorSpec, torch_dtype

_COPY_AT_ONCE = 4 << 20


class ModuleSink:
    """Takes a plan's tensors into a loaded model, cast to its dtype; what they replace is kept, and put back.

    `specs` are those of the plan's targets where they differ from the folder's own (another output dtype). A tied
    model that is given a head gets one of its own until it is restored. Restore before another plan is run, unless it
    has the same targets; as a context manager it restores on the way out.
    """

    def __init__(self, loaded: Loaded, specs: Mapping[str, TensorSpec] | None = None) -> None:
        self._loaded = loaded
        self._views = parameter_views(loaded)
        self._own = open_checkpoint(loaded.folder, str(loaded.folder)).tensors
        self._specs = {name: stored.spec for name, stored in self._own.items()} | dict(specs or {})
        self._kept: dict[str, Tensor] = {}
        self._shared: nn.Parameter | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> ModuleSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Bytes of a tensor, in the dtype the plan writes it in, from byte `start` on."""
        spec = self._specs.get(tensor) or self._specs[self._loaded.anatomy.embed]
        self._put(tensor, spec.dtype, start, data)

    def copy(self, tensor: str, source: Stored) -> None:
        """A whole tensor as it lies on disk; nothing is read where that is what the model was loaded from."""
        if self._own.get(tensor) == source and not self._is_tied(tensor):
            if tensor in self._kept:
                with torch.no_grad():
                    self._views[tensor].copy_(self._kept[tensor])
            return
        with closing(Files()) as files:
            for start in range(0, source.spec.nbytes, _COPY_AT_ONCE):
                buffer = memoryview(bytearray(min(_COPY_AT_ONCE, source.spec.nbytes - start)))
                files.fill(source, start, buffer)
                self._put(tensor, source.spec.dtype, start, buffer)

    def sync(self, files: Iterable[str]) -> None:
        """Nothing to wait for: what is written is in place."""

    def restore(self) -> None:
        """Put back every tensor that was changed, and the tied head."""
        with self._lock, torch.no_grad():
            while self._kept:
                name, value = self._kept.popitem()
                self._views[name].copy_(value)
            if self._shared is not None:
                self._tie(self._shared, True)
                self._views = parameter_views(self._loaded)
                self._shared = None

    def _put(self, tensor: str, dtype: str, start: int, data: memoryview) -> None:
        values = torch.frombuffer(data, dtype=torch_dtype(dtype))
        with torch.no_grad():
            _fill(self._open(tensor), start * 8 // BITS[dtype], values)

    def _open(self, tensor: str) -> Tensor:
        """The view to write into; what it held is kept the first time."""
        with self._lock:
            if self._is_tied(tensor):
                self._untie(tensor)
            elif tensor not in self._kept:
                self._kept[tensor] = self._views[tensor].clone()
            return self._views[tensor]

    def _is_tied(self, tensor: str) -> bool:
        model = self._loaded.model
        shared = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        return tensor == self._loaded.anatomy.unembed and shared

    def _untie(self, tensor: str) -> None:
        """Give the head a parameter of its own; it is dropped on `restore`, so nothing of it has to be put back."""
        shared: nn.Parameter = self._loaded.model.get_output_embeddings().weight
        head = nn.Parameter(shared.detach().clone(), requires_grad=False)
        self._tie(head, False)
        self._shared = shared
        self._kept[tensor] = self._views[tensor] = head.detach()

    def _tie(self, head: nn.Parameter, tied: bool) -> None:
        self._loaded.model.get_output_embeddings().weight = head
        self._loaded.model.config.tie_word_embeddings = tied


def _fill(view: Tensor, start: int, values: Tensor) -> None:
    """Elements `start` and on of a view, in its row-major order, whatever its strides."""
    if view.is_contiguous():
        view.view(-1)[start : start + len(values)].copy_(values)
    elif view.ndim == 1:
        view[start : start + len(values)].copy_(values)
    else:
        size = view[0].numel()
        while len(values):
            row, inside = divmod(start, size)
            taken = min(size - inside, len(values))
            _fill(view[row], inside, values[:taken])
            start, values = start + taken, values[taken:]
