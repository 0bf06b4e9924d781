"""A folder served by a real server on this machine, asked, and compared with transformers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError, RefusedError
from surgeon.ship.servers.comparison import TOLERANCES, Compared, Reference
from surgeon.ship.servers.engines import Engine, Served, engine_named
from surgeon.ship.servers.process import running
from surgeon.store.adapter_config import read_settings
from surgeon.store.json_files import read_object
from surgeon.tensors import FLOATS

#: The ranks that vLLM makes room for; an adapter needs the next above its own.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class LiveCheck:
    """What a server answered to every prompt, against transformers in float32."""

    server: str
    dtype: str
    tolerance: float
    rows: Sequence[Compared]

    @property
    def same(self) -> bool:
        """Whether nothing is wrong."""
        return not any(row.wrong for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = [row.to_dict() for row in self.rows]
        return {
            "server": self.server,
            "dtype": self.dtype,
            "tolerance": self.tolerance,
            "same": self.same,
            "rows": rows,
        }


@dataclass(frozen=True)
class Serving:
    """What is served: by which engine of which interpreter, the model's folder or GGUF file, an adapter on it."""

    engine: Engine
    python: str
    model: Path
    dtype: str
    adapter: Path | None = None

    def asked(self, reference: Reference, count: int) -> list[Served]:
        """Start the server, ask every prompt for so many greedy tokens, and stop it."""
        prompts = reference.prompts()
        command = self.engine.line(self.python, self.model, self.dtype, self.adapter, self._rank())
        called = "adapted" if self.adapter else "served" if self.engine.name == "vllm" else str(self.model)
        with running(self.engine.name, command, self.engine.settings) as server:
            return [self.engine.answer(server, called, prompt, count) for prompt in prompts]

    def _rank(self) -> int:
        """The room that the adapter needs."""
        if self.adapter is None or self.engine.gguf:
            return 1
        config = read_object(self.adapter / "adapter_config.json")
        settings = read_settings(config, str(self.adapter))
        largest = max(map(int, (settings.r, *(settings.rank_pattern or {}).values())))
        return next((rank for rank in _RANKS if rank >= largest), largest)


def serve_and_compare(
    folder: Path, server: str, *, python: str | None = None, dtype: str = "float32", model: Path | None = None,
    adapter: Path | None = None, count: int = 16, tolerance: float | None = None,
) -> LiveCheck:  # fmt: skip
    """Serve `model` (by default the folder) with `adapter`, if any, and compare it with transformers on the folder.

    RefusedError where the server is not installed, or cannot serve what is given; RunError where it fails.
    """
    engine = engine_named(server)
    python = python or sys.executable
    served = (model or folder).resolve()
    if engine.gguf and served.suffix != ".gguf":
        raise RefusedError(f"{server} serves GGUF files, and {served} is none", hint="--gguf FILE")
    if dtype not in TOLERANCES:
        raise RefusedError(f"{dtype!r} is no dtype to serve in", hint=f"use {', '.join(TOLERANCES)}")
    used = dtype if engine.casts else _dtype_of(served)
    engine.require(python)
    reference = Reference(folder, used)
    answers = Serving(engine, python, served, dtype, adapter and adapter.resolve()).asked(reference, count)
    # llama.cpp keeps activations and logits in float32 whatever the file's type.
    usual = TOLERANCES.get(used, TOLERANCES["bfloat16"]) if engine.gguf else reference.tolerance(answers)
    allowed = usual if tolerance is None else tolerance
    return LiveCheck(server, used, allowed, reference.compare(answers, count, allowed))


def _dtype_of(model: Path) -> str:
    """The dtype a model's matrices are stored in, and so computed in; the commonest, where there are several."""
    if model.suffix == ".gguf":
        return _gguf_dtype(model)
    from surgeon.store.checkpoint import open_checkpoint

    count: dict[str, int] = {}
    for stored in open_checkpoint(model, str(model)).tensors.values():
        name = FLOATS.get(stored.spec.dtype, stored.spec.dtype)
        count[name] = count.get(name, 0) + stored.spec.count
    return max(count, key=count.__getitem__)


def _gguf_dtype(file: Path) -> str:
    """The commonest type of a GGUF file's tensors. RefusedError without the package gguf."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise RefusedError("reading GGUF needs the package gguf", hint="pip install 'model-surgeon[gguf]'") from None
    try:
        tensors = GGUFReader(str(file)).tensors
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: no GGUF file that can be read: {error}", hint="write it again") from error
    count: dict[str, int] = {}
    for tensor in tensors:
        name = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(
            tensor.tensor_type.name, tensor.tensor_type.name
        )
        count[name] = count.get(name, 0) + int(tensor.n_elements)
    return max(count, key=count.__getitem__)
