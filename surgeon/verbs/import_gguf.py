"""`import_gguf`: a GGUF file as an ordinary checkpoint folder.

transformers' own loader knows the names, the order of rotary rows, the tokenizer and the chat template. It loads in
float32, so that the one rounding is the cast to the dtype written; the writing is ours.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.engine.events import Progress
from surgeon.engine.workspace import Workspace
from surgeon.errors import CheckpointError, RefusedError
from surgeon.store.layout import lay_out
from surgeon.store.writer import FolderWriter
from surgeon.tensors import FLOATS, TensorSpec, stored_dtype, torch_dtype
from surgeon.verbs.portable import json_text, portable_config, portable_generation, portable_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

SHARD_SIZE = 5 * 10**9

_FETCH = "fetch the file again, or check that it is whole"


@dataclass(frozen=True)
class Loaded:
    """What transformers made of a file: tensors by their names on disk, and the texts beside them."""

    tensors: Mapping[str, Tensor]
    texts: Mapping[str, bytes]


def import_gguf(
    file: str | Path,
    out: str | Path,
    *,
    dtype: str = "bfloat16",
    overwrite: bool = False,
    on_event: Callable[[Progress], None] | None = None,
) -> Path:
    """Write a GGUF file's model into the folder `out`, dequantised, with config, tokenizer and chat template."""
    file, out = Path(file), Path(out)
    stored = _stored(dtype)
    _check_file(file)
    with Workspace(out, f"import {file.name} {dtype}", overwrite=overwrite, resume=False, inputs=[file]) as build:
        try:
            architecture = _check_contents(file)
            _write(build.folder, _load(file, architecture, dtype, on_event), stored, on_event)
        except BaseException:
            build.discard()
            raise
        build.commit()
    return out


def _stored(dtype: str) -> str:
    try:
        return stored_dtype(dtype)
    except ValueError as error:
        raise RefusedError(str(error), hint="--dtype bfloat16 is what most servers run") from None


def _check_file(file: Path) -> None:
    """Refuse what is plainly no GGUF file, before anything heavy is imported."""
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file", hint="give the path of a .gguf file")
    with file.open("rb") as stream:
        start = stream.read(4)
    if start != b"GGUF":
        raise CheckpointError(f"{file}: not a GGUF file (it begins with {start!r})", hint=_FETCH)
    if find_spec("gguf") is None:
        raise RefusedError("reading GGUF needs the package gguf", hint="pip install 'model-surgeon[gguf]'")


def _check_contents(file: Path) -> str:
    """Check that the file is whole; the architecture it names."""
    from gguf import GGUFReader

    try:
        # It views every tensor; of a shortened file numpy fails wherever it first meets the missing bytes.
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
        parts = reader.fields["split.count"].contents() if "split.count" in reader.fields else 1
    except Exception as error:
        raise CheckpointError(f"{file}: damaged or truncated GGUF: {error}", hint=_FETCH) from error
    if isinstance(parts, int) and parts > 1:
        raise CheckpointError(
            f"{file}: one of {parts} parts", hint="join them first: llama-gguf-split --merge FIRST OUT"
        )
    return architecture


def _load(file: Path, architecture: str, dtype: str, on_event: Callable[[Progress], None] | None) -> Loaded:
    with _silence():
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    import torch

    _report(on_event, "load", 0, 1)
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "local_files_only": True}
    try:
        with _silence():
            tokenizer = AutoTokenizer.from_pretrained(**source)
            # With output_loading_info it gives a pair: the model, and what was missing.
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **source,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
    except Exception as error:
        raise _refusal(file, architecture, error) from error
    model, notes = loaded
    if notes["missing_keys"]:
        listed = ", ".join(sorted(notes["missing_keys"])[:8])
        raise CheckpointError(
            f"{file}: {len(notes['missing_keys'])} tensors of the model are not in it: {listed}", hint=_FETCH
        )
    _report(on_event, "load", 1, 1)
    return Loaded(_tensors(model), _model_texts(model, dtype) | _tokenizer_texts(tokenizer))


def _refusal(file: Path, architecture: str, error: Exception) -> CheckpointError:
    if "not supported" in str(error) or isinstance(error, NotImplementedError):
        return CheckpointError(
            f"{file}: transformers does not read GGUF files of the architecture {architecture!r}: {error}",
            hint="look for the model's safetensors, or update transformers and gguf",
        )
    return CheckpointError(f"{file}: transformers cannot load it ({architecture}): {error}", hint=_FETCH)


def _tensors(model: Any) -> dict[str, Tensor]:
    """The tensors under the names a saved model has: what is tied once, experts as on disk."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    left_out = model._keys_to_ignore_on_save or ()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}
    return dict(revert_weight_conversion(model, remove_tied_weights_from_state_dict(state, model)))


def _model_texts(model: Any, dtype: str) -> dict[str, bytes]:
    model.config.architectures = [type(model).__name__]
    config = json.loads(model.config.to_json_string())
    generation = json.loads(model.generation_config.to_json_string())
    return {
        "config.json": json_text(portable_config(config, dtype)),
        "generation_config.json": json_text(portable_generation(generation)),
    }


def _tokenizer_texts(tokenizer: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        texts = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    name = "tokenizer_config.json"
    return texts | {name: json_text(portable_tokenizer(json.loads(texts[name])))}


def _write(folder: Path, loaded: Loaded, stored: str, on_event: Callable[[Progress], None] | None) -> None:
    specs = {name: _spec(tensor, stored) for name, tensor in loaded.tensors.items()}
    layout = lay_out(specs, None, SHARD_SIZE)
    writer = FolderWriter(folder, layout)
    total, done = sum(spec.nbytes for spec in specs.values()), 0
    try:
        writer.create()
        for name, tensor in loaded.tensors.items():
            writer.write(name, 0, _bytes(tensor, specs[name]))
            done += specs[name].nbytes
            _report(on_event, "write", done, total, name)
        writer.sync(shard.name for shard in layout.files)
        writer.finish((), loaded.texts)
    finally:
        writer.close()


def _spec(tensor: Tensor, stored: str) -> TensorSpec:
    if tensor.is_floating_point():
        return TensorSpec(stored, tuple(tensor.shape))
    names = {"torch.bool": "BOOL", "torch.uint8": "U8", "torch.int32": "I32", "torch.int64": "I64"}
    return TensorSpec(names[str(tensor.dtype)], tuple(tensor.shape))


def _bytes(tensor: Tensor, spec: TensorSpec) -> bytes:
    import torch

    cast = tensor.detach().to(torch_dtype(spec.dtype)) if spec.dtype in FLOATS else tensor
    return cast.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _report(on_event: Callable[[Progress], None] | None, stage: str, done: int, total: int, detail: str = "") -> None:
    if on_event is not None:
        on_event(Progress(stage, done, total, "bytes" if stage == "write" else "model", detail))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers' bars, notices and warnings off the terminal; errors are raised all the same."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
