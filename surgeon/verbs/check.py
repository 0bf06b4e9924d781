"""`surgeon check`: whether inference servers load a folder as it is meant, by their rules and by asking one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import CheckpointError, RefusedError, VerificationError
from surgeon.verbs._table import table

if TYPE_CHECKING:
    from surgeon.measuring.serving.check import StaticCheck
    from surgeon.ship.servers.serve import LiveCheck

_COMPARED = ("config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class CheckReport:
    """What each server does with a folder by its rules, and what one answered that was asked."""

    static: StaticCheck
    live: LiveCheck | None = None

    @property
    def exit_code(self) -> int:
        """0 as meant, 3 something is wrong, 4 something cannot be told (3 wins over 4)."""
        return 3 if self.live is not None and not self.live.same else self.static.verdict.exit_code

    def explain(self) -> str:
        """A table of the servers, the faults, and a table of what the server answered."""
        rows = ((one.server, one.verdict, one.detail) for one in self.static.readings)
        parts = ["\n".join(table(rows)), self.static.verdict.explain()]
        return "\n\n".join([*parts, *([_live(self.live)] if self.live is not None else [])])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        served = None if self.live is None else self.live.to_dict()
        return {**self.static.verdict.to_dict(), "exit_code": self.exit_code, "served": served}


def check(
    out: str | Path,
    *,
    base: str | Path | None = None,
    serve: str | None = None,
    python: str | None = None,
    dtype: str = "float32",
    gguf: str | Path | None = None,
    adapter: str | Path | None = None,
    tokens: int = 16,
    tolerance: float | None = None,
) -> CheckReport:
    """Hold a folder against the rules of every server; with `serve`, start that server and ask it too.

    `base` is what the folder was made from (by default what its receipt names): what a newer library wrote anew is told
    by comparing with it. `serve` is transformers, vllm, llamacpp or mlx, run by the interpreter `python`; its greedy
    tokens and log-probabilities are compared with those of transformers in float32, within `tolerance` or the noise of
    the dtype. llamacpp is given the folder as the file `gguf`, or as one written for the while in `dtype`. With
    `adapter`, `base` (or `gguf`, the base's) is served with that adapter on it, and compared with the folder all the
    same: adapter on base must be the merged model.
    """
    from surgeon.measuring.serving.check import check_folder

    folder = Path(out).expanduser()
    if (folder / "adapter_config.json").exists() and not list(folder.glob("model*.safetensors*")):
        raise RefusedError(
            f"{folder} is an adapter, which is served on its base",
            hint="check the merged folder: surgeon check MERGED --serve vllm --base BASE --adapter ADAPTER",
        )
    if tokens < 1:
        raise RefusedError(f"{tokens} tokens are none to compare", hint="ask for 1 or more")
    source, wanted = _source(folder, base)
    static = check_folder(folder, source, wanted=wanted)
    if serve is None:
        return CheckReport(static)
    from surgeon.ship.servers.serve import serve_and_compare

    if adapter is not None and base is None and gguf is None:
        raise RefusedError("an adapter is served on its base", hint="name it: --base MODEL, or --gguf FILE of the base")
    model = gguf if gguf is not None else base if adapter is not None else None
    paths = [None if path is None else Path(path).expanduser() for path in (model, adapter)]
    for path in filter(None, paths):
        if not path.exists():
            raise RefusedError(f"{path}: no such file or folder", hint="a server is given paths on this machine")
    written = serve == "llamacpp" and gguf is None
    with _as_gguf(paths[0] or folder, dtype) if written else nullcontext(paths[0]) as served:
        live = serve_and_compare(
            folder, serve, python=python, dtype=dtype, model=served, adapter=paths[1], count=tokens, tolerance=tolerance
        )
    return CheckReport(static, live)


@contextmanager
def _as_gguf(model: Path, dtype: str) -> Iterator[Path]:
    """A model as a GGUF file, until the block ends."""
    from surgeon.verbs.export_gguf import export_gguf

    with tempfile.TemporaryDirectory(prefix="surgeon-gguf-") as scratch:
        yield export_gguf(model, Path(scratch) / "model.gguf", dtype=dtype).file


def _live(live: LiveCheck) -> str:
    """A line a prompt, and one over all."""
    head = ("prompt", "tokens", "|Δ log p|", "")
    rows = [
        (
            _short(row.prompt),
            str(row.tokens),
            "not told" if row.apart is None else f"{row.apart:.1e}",
            row.wrong or "same",
        )
        for row in live.rows
    ]
    said = "answers as transformers does" if live.same else "does not answer as transformers does"
    last = f"{live.server} {said} (computed in {live.dtype}, within {live.tolerance:g})."
    return "\n".join([*table([head, *rows]), "", last])


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 36 else f"{shown[:35]}…"


def _source(folder: Path, base: str | Path | None) -> tuple[Mapping[str, Any] | None, bool]:
    """The parsed files of what a folder was made from, by name, and whether there is such a source at all."""
    from surgeon.engine.receipt import NAME
    from surgeon.measuring.receipt_file import read_receipt
    from surgeon.store.source import locate

    if base is not None:
        root, _ = locate(str(base), probe=True)
        return _parsed({name: root / name for name in _COMPARED}), True
    if not (folder / NAME).exists():
        return None, False
    try:
        receipt = read_receipt(folder)
    except VerificationError:
        # What is wrong with a receipt is told by `verify`; here it names no source.
        return None, True
    ref = receipt.side_files.source
    revision = next((one.revision for one in receipt.inputs if one.ref == ref), None)
    return _parsed(_reachable(ref, revision)), True


def _reachable(ref: str, revision: str | None) -> dict[str, Path]:
    """A source's files on this machine: in its folder, or in the Hub's cache. Nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    root = Path(ref).expanduser()
    if root.is_dir():
        return {name: root / name for name in _COMPARED}
    try:
        cached = {name: try_to_load_from_cache(ref.partition("@")[0], name, revision=revision) for name in _COMPARED}
    except HFValidationError:
        return {}
    return {name: Path(path) for name, path in cached.items() if isinstance(path, str)}


def _parsed(files: Mapping[str, Path]) -> dict[str, Any] | None:
    from surgeon.store.json_files import read_object

    found = {}
    for name, path in files.items():
        try:
            found |= {name: read_object(path)} if path.is_file() else {}
        except CheckpointError:
            # A source that cannot be read is one that cannot be compared with.
            return None
    return found if "config.json" in found else None
