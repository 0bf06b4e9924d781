"""A sink for plans that is a loaded model: the bytes of an output tensor go into the parameter that holds it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import closing
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import MismatchError, nearest
from surgeon.runtime.held import Live, bare, held
from surgeon.runtime.load import Loaded
from surgeon.runtime.names import Views, views_of
from surgeon.runtime.rewritten import Rewritten
from surgeon.store.checkpoint import open_checkpoint
from surgeon.store.files import Files
from surgeon.store.header import Stored
from surgeon.tensors import BITS, TensorSpec, torch_dtype

_COPY_AT_ONCE = 4 << 20


class ModuleSink:
    """Takes a plan's tensors into a loaded model, cast to its dtype; what they replace is kept, and put back.

    Parameters that accelerate offloads are changed where it keeps them. `specs` are those of the plan's targets where
    they differ from the folder's own (another output dtype). Where the model's folder is known, tensors that are copied
    from it are left alone; else each is compared first. A tied model that is given a head gets one of its own until it
    is restored. Restore before another plan is run, unless it has the same targets; as a context manager it restores
    on the way out. `views` and `held` are what the model holds, by the disk's names and by its own.
    """

    def __init__(self, loaded: Loaded | Live, specs: Mapping[str, TensorSpec] | None = None) -> None:
        self._model = bare(loaded.model)
        folder = loaded.folder
        self._own = {} if folder is None else open_checkpoint(folder, str(folder)).tensors
        self._compares = folder is None
        self._specs = {name: stored.spec for name, stored in self._own.items()} | dict(specs or {})
        self._kept: dict[str, Tensor] = {}
        self._rewritten = Rewritten(self._model)
        self._written_anew: set[str] = set()
        self._heads: dict[str, tuple[MutableMapping[str, Any], str, Any]] = {}
        self._lock = threading.Lock()
        self.views = self._look()

    def __enter__(self) -> ModuleSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Bytes of a tensor, in the dtype the plan writes it in, from byte `start` on."""
        if tensor not in self._specs:
            raise MismatchError(f"the loaded model holds no tensor {tensor!r}", hint=nearest(tensor, self.views))
        self._put(tensor, self._specs[tensor].dtype, start, data)

    def copy(self, tensor: str, source: Stored) -> None:
        """A whole tensor as it lies on disk; nothing is written where the model holds it already."""
        if not self._is_tied(tensor):
            if self._own.get(tensor) == source and self._as_loaded(tensor):
                return
            if self._compares and self._holds(tensor, source):
                return
        for start, buffer in _pieces_of(source):
            self._put(tensor, source.spec.dtype, start, buffer)

    def dtype(self, tensor: str) -> torch.dtype:
        """The dtype that the model has a tensor in."""
        if tensor in self.views:
            return self.views[tensor].dtype
        return self.held.tensors[self.views.parameter[tensor]].dtype

    def sync(self, files: Iterable[str]) -> None:
        """Nothing to wait for: what is written is in place."""

    def restore(self) -> None:
        """Put back every tensor that was changed, and the tied head."""
        with self._lock, torch.no_grad():
            while self._kept:
                name, value = self._kept.popitem()
                self.views[name].copy_(value)
            moved = bool(self._heads or self._written_anew)
            if self._heads:
                self._model.config.tie_word_embeddings = True
            while self._heads:
                _, (entries, key, value) = self._heads.popitem()
                entries[key] = value
            self._rewritten.restore()
            self._written_anew.clear()
            if moved:
                self.views = self._look()

    def _look(self) -> Views:
        """What the model holds now, as tensors of the disk."""
        self.held = held(self._model)
        shapes = {name: spec.shape for name, spec in self._specs.items()}
        return views_of(self._model, shapes, self.held.tensors)

    def _as_loaded(self, tensor: str) -> bool:
        """Whether a tensor is what was loaded; it is put back where that is at hand."""
        with self._lock, torch.no_grad():
            if tensor in self._kept:
                self.views[tensor].copy_(self._kept[tensor])
            return tensor not in self._heads and self.views.parameter.get(tensor) not in self._written_anew

    def _holds(self, tensor: str, source: Stored) -> bool:
        """Whether the model holds a stored tensor's values, in its own dtype."""
        view = self._now(tensor)
        for start, buffer in _pieces_of(source):
            values = torch.frombuffer(buffer, dtype=torch_dtype(source.spec.dtype)).to(view.device, view.dtype)
            first = start * 8 // BITS[source.spec.dtype]
            for piece, at in _spans(view, first, len(values)):
                if not torch.equal(piece, values[at - first : at - first + len(piece)]):
                    return False
        return True

    def _now(self, tensor: str) -> Tensor:
        """What the model holds of a tensor, to be read only: of one that is kept in a file, a copy."""
        shelf = self.held.shelves.get(parameter := self.views.parameter.get(tensor, ""))
        if tensor in self.views or shelf is None:
            return self.views[tensor]
        return self.views.within(parameter, shelf.read())[tensor]

    def _put(self, tensor: str, dtype: str, start: int, data: memoryview) -> None:
        values = torch.frombuffer(data, dtype=torch_dtype(dtype))
        with torch.no_grad():
            _fill(self._open(tensor), start * 8 // BITS[dtype], values)

    def _open(self, tensor: str) -> Tensor:
        """The view to write into; what it held is kept the first time."""
        with self._lock:
            if self._is_tied(tensor):
                self._untie(tensor)
            parameter = self.views.parameter.get(tensor)
            shelf = self.held.shelves.get(parameter or "")
            if parameter is not None and shelf is not None and shelf.in_files:
                self._write_anew(parameter)
            elif tensor not in self._kept and tensor not in self._heads:
                self._kept[tensor] = self.views[tensor].clone()
            return self.views[tensor]

    def _write_anew(self, parameter: str) -> None:
        """Give an offloaded parameter, under all its names, a file of its own."""
        if parameter in self._written_anew:
            return
        names = [parameter, *(name for name, other in self.held.tied.items() if other == parameter)]
        together = [name for name in names if name == parameter or self._is_tied_parameter(name)]
        whole = self._rewritten.open([self.held.shelves[name] for name in together])
        self.views.update(self.views.within(parameter, whole))
        self._written_anew.add(parameter)

    def _is_tied(self, tensor: str) -> bool:
        return self._is_tied_parameter(self.views.parameter.get(tensor, ""))

    def _is_tied_parameter(self, name: str) -> bool:
        untied = {self.views.parameter[tensor] for tensor in self._heads}
        return name not in untied and self.held.is_tied(name)

    def _untie(self, tensor: str) -> None:
        """Give the head a parameter of its own; it is dropped on `restore`, so nothing of it has to be put back."""
        parameter = self.views.parameter[tensor]
        shelf = self.held.shelves[parameter]
        shared = shelf.entries[shelf.key]
        self._heads[tensor] = shelf.entries, shelf.key, shared
        self._model.config.tie_word_embeddings = False
        if not shelf.in_files:
            own = shared.detach().clone()
            shelf.entries[shelf.key] = (
                nn.Parameter(own, requires_grad=False) if isinstance(shared, nn.Parameter) else own
            )
            self.views.update(self.views.within(parameter, own))


def _pieces_of(source: Stored) -> Iterator[tuple[int, memoryview]]:
    """The bytes of a stored tensor, with where each piece starts."""
    with closing(Files()) as files:
        for start in range(0, source.spec.nbytes, _COPY_AT_ONCE):
            buffer = memoryview(bytearray(min(_COPY_AT_ONCE, source.spec.nbytes - start)))
            files.fill(source, start, buffer)
            yield start, buffer


def _fill(view: Tensor, start: int, values: Tensor) -> None:
    """Elements `start` and on of a view, in its row-major order, whatever its strides."""
    for piece, at in _spans(view, start, len(values)):
        piece.copy_(values[at - start : at - start + len(piece)])


def _spans(view: Tensor, start: int, count: int) -> Iterator[tuple[Tensor, int]]:
    """Elements [start, start + count) of a view as flat pieces of it, each with the number of its first element."""
    if view.is_contiguous():
        yield view.view(-1)[start : start + count], start
    elif view.ndim == 1:
        yield view[start : start + count], start
    else:
        size = view[0].numel()
        while count:
            row, inside = divmod(start, size)
            taken = min(size - inside, count)
            yield from ((piece, row * size + at) for piece, at in _spans(view[row], inside, taken))
            start, count = start + taken, count - taken
