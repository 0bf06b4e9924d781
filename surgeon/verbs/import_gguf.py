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
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.engine.events import Listener, Progress
from surgeon.engine.workspace import Workspace
from surgeon.errors import CheckpointError, RefusedError
from surgeon.store.layout import lay_out
from surgeon.store.writer import FolderWriter
from surgeon.tensors import FLOATS, TensorSpec, stored_dtype, torch_dtype
from surgeon.verbs.gguf_config import completed
from surgeon.verbs.portable import json_text, portable_config, portable_generation, portable_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

SHARD_SIZE = 5 * 10**9

_FETCH = "fetch the file again, or check that it is whole"


def import_gguf(
    file: str | Path,
    out: str | Path,
    *,
    dtype: str = "bfloat16",
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> Path:
    """Write a GGUF file's model into the folder `out`, dequantised, with config, tokenizer and chat template."""
    file, out, tell = Path(file), Path(out), on_event or _nobody
    try:
        stored = stored_dtype(dtype)
    except ValueError as error:
        raise RefusedError(str(error), hint="--dtype bfloat16 is what most servers run") from None
    _check_file(file)
    with Workspace(out, f"import {file.name} {dtype}", overwrite=overwrite, resume=False, inputs=[file]) as build:
        try:
            fields = _check_contents(file)
            tell(Progress("load", 0, 1, "model"))
            model, tokenizer = _load(file, fields)
            tell(Progress("load", 1, 1, "model"))
            _write(build.folder, _tensors(model), _texts(model, tokenizer, dtype, fields), stored, tell)
        except BaseException:
            build.discard()
            raise
        build.commit()
    return out


def _nobody(event: Progress) -> None:
    """Where progress goes when nobody asked for it."""


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


def _check_contents(file: Path) -> Mapping[str, Any]:
    """Check that the file is whole; the values it holds besides tensors and vocabulary, by key."""
    from gguf import GGUFReader

    try:
        # It views every tensor; of a shortened file numpy fails wherever it first meets the missing bytes.
        reader = GGUFReader(file)
        fields = {k: field.contents() for k, field in reader.fields.items() if not k.startswith("tokenizer.")}
        str(fields["general.architecture"])
        parts = fields.get("split.count", 1)
    except Exception as error:
        raise CheckpointError(f"{file}: damaged or truncated GGUF: {error}", hint=_FETCH) from error
    if isinstance(parts, int) and parts > 1:
        hint = "join them first: llama-gguf-split --merge FIRST OUT"
        raise CheckpointError(f"{file}: one of {parts} parts", hint=hint)
    return fields


def _config(source: Mapping[str, Any], architecture: str, fields: Mapping[str, Any]) -> Any:
    """The config as transformers reads it, with what else of the file decides the shapes and scales of attention."""
    from transformers import AutoConfig

    from surgeon.ship.gguf_names import CONFIG_KEYS, attention_scalar

    config = AutoConfig.from_pretrained(**source)
    for key, called in CONFIG_KEYS.items():
        if f"{architecture}.{key}" in fields and hasattr(config, called):
            setattr(config, called, fields[f"{architecture}.{key}"])
    if hasattr(config, "query_pre_attn_scalar"):
        config.query_pre_attn_scalar = attention_scalar(
            config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.head_dim
        )
    return config


def _load(file: Path, fields: Mapping[str, Any]) -> tuple[Any, Any]:
    """The model, in float32, and its tokenizer."""
    architecture = str(fields["general.architecture"])
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "local_files_only": True}
    with _silence():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        how = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True), "output_loading_info": True}
        try:
            tokenizer = AutoTokenizer.from_pretrained(**source)
            config = _config(source, architecture, fields)
            loaded: Any = AutoModelForCausalLM.from_pretrained(**source, config=config, **how)
        except Exception as error:
            raise CheckpointError(
                f"{file}: transformers cannot load this GGUF of the architecture {architecture!r}: {error}",
                hint="update transformers and gguf, or look for the model's safetensors",
            ) from error
    model, notes = loaded
    if missing := sorted(notes["missing_keys"]):
        listed = ", ".join(missing[:8])
        raise CheckpointError(f"{file}: {len(missing)} tensors of the model are not in it: {listed}", hint=_FETCH)
    return model, tokenizer


def _tensors(model: Any) -> dict[str, Tensor]:
    """The tensors under the names a saved model has: what is tied once, experts as on disk."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    left_out = model._keys_to_ignore_on_save or ()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}
    return dict(revert_weight_conversion(model, remove_tied_weights_from_state_dict(state, model)))


def _texts(model: Any, tokenizer: Any, dtype: str, fields: Mapping[str, Any]) -> dict[str, bytes]:
    """The files beside the weights, by name."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        texts = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    model.config.architectures = [type(model).__name__]
    config = json.loads(model.config.to_json_string())
    about_tokenizer = json.loads(texts["tokenizer_config.json"])
    return texts | {
        "config.json": json_text(portable_config(completed(config, fields), dtype)),
        "generation_config.json": json_text(portable_generation(json.loads(model.generation_config.to_json_string()))),
        "tokenizer_config.json": json_text(portable_tokenizer(about_tokenizer)),
    }


def _write(
    folder: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, bytes], stored: str, tell: Listener
) -> None:
    specs = {name: _spec(tensor, stored) for name, tensor in tensors.items()}
    layout = lay_out(specs, None, SHARD_SIZE)
    total, done = sum(spec.nbytes for spec in specs.values()), 0
    with contextlib.closing(FolderWriter(folder, layout)) as writer:
        writer.create()
        for name, tensor in tensors.items():
            writer.write(name, 0, _bytes(tensor, specs[name]))
            done += specs[name].nbytes
            tell(Progress("write", done, total, "bytes", name))
        writer.sync(shard.name for shard in layout.files)
        writer.finish((), texts)


def _spec(tensor: Tensor, stored: str) -> TensorSpec:
    names = {"torch.bool": "BOOL", "torch.uint8": "U8", "torch.int32": "I32", "torch.int64": "I64"}
    return TensorSpec(stored if tensor.is_floating_point() else names[str(tensor.dtype)], tuple(tensor.shape))


def _bytes(tensor: Tensor, spec: TensorSpec) -> bytes:
    import torch

    cast = tensor.detach().to(torch_dtype(spec.dtype)) if spec.dtype in FLOATS else tensor
    return cast.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers' bars, notices and warnings off the terminal; errors are raised all the same."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
