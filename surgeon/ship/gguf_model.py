"""A whole checkpoint as one GGUF file, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from surgeon.engine.events import Listener, Progress
from surgeon.engine.reading import DiskReader
from surgeon.errors import RefusedError
from surgeon.ship.gguf_names import Naming, attention_scalar, llama3_factors, naming, rope_scaling, rope_theta
from surgeon.ship.gguf_vocab import Vocab, read_vocab
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.files import Files
from surgeon.store.header import Stored

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

#: The dtypes written → the file type of llama.cpp.
KINDS = {"float32": ("F32", 0), "bfloat16": ("BF16", 32), "q8_0": ("Q8_0", 7)}


@dataclass(frozen=True)
class ModelFile:
    """What goes into the file."""

    checkpoint: Checkpoint
    names: Naming
    vocab: Vocab
    kind: str

    def write(self, path: Path, name: str, listener: Listener | None) -> float:
        """Write it; ‖W − stored‖/‖W‖ over all tensors, what the dtype costs."""
        from gguf import GGUFWriter

        writer = GGUFWriter(None, self.names.architecture.name)
        with closing(Files()) as files, torch.inference_mode(), closing(writer):
            self._describe(writer, name)
            held = {called: (tensor, stored) for tensor, stored in self.checkpoint.tensors.items()
                    if (called := self._name(tensor)) is not None}  # fmt: skip
            if self._rotated is not None:
                writer.add_tensor_info(
                    "rope_freqs.weight", self._rotated.shape, np.dtype(np.float32), self._rotated.nbytes
                )
            for called, (_, stored) in held.items():
                self._announce(writer, called, stored)
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            if self._rotated is not None:
                writer.write_tensor_data(self._rotated.numpy())
            lost, square = 0.0, 0.0
            for done, (tensor, stored) in enumerate(held.values()):
                if listener is not None:
                    listener(Progress("write", done, len(held), "tensors", tensor))
                values = self._values(tensor, stored, files)
                data, left = _encoded(values, self._type(stored.spec.shape))
                writer.write_tensor_data(data)
                lost, square = lost + left, square + float(values.double().square().sum())
        return (lost / square) ** 0.5 if square else 0.0

    def _name(self, tensor: str) -> str | None:
        """None also for a head that is stored though tied: llama.cpp takes the embedding."""
        tied = self.checkpoint.config.get("tie_word_embeddings", False)
        return None if tied and tensor == "lm_head.weight" else self.names.name(tensor)

    @property
    def _rotated(self) -> Tensor | None:
        scaling = rope_scaling(self.checkpoint.config)
        return llama3_factors(self.checkpoint.config, scaling) if scaling.get("rope_type") == "llama3" else None

    def _values(self, tensor: str, stored: Stored, files: Files) -> Tensor:
        out = torch.empty(stored.spec.count)
        DiskReader(files, torch.device("cpu")).read(stored, 0, stored.spec.count, out)
        return self.names.value(tensor, out.reshape(stored.spec.shape)).contiguous()

    def _type(self, shape: tuple[int, ...]) -> GGMLQuantizationType:
        """Vectors stay float32; rows that no block of 32 divides stay bfloat16."""
        from gguf import GGMLQuantizationType

        kind = "F32" if len(shape) < 2 else "BF16" if self.kind == "q8_0" and shape[-1] % 32 else KINDS[self.kind][0]
        return GGMLQuantizationType[kind]

    def _announce(self, writer: GGUFWriter, called: str, stored: Stored) -> None:
        from gguf import GGML_QUANT_SIZES

        kind, shape = self._type(stored.spec.shape), stored.spec.shape
        block, size = GGML_QUANT_SIZES[kind]
        nbytes = stored.spec.count // block * size
        writer.add_tensor_info(called, shape, np.dtype(np.float32), nbytes, raw_dtype=kind)

    def _describe(self, writer: GGUFWriter, name: str) -> None:
        from gguf import GGML_QUANT_VERSION, GGUFType

        writer.add_type(GGUFType.MODEL)
        writer.add_name(name)
        writer.add_file_type(KINDS[self.kind][1])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        _hyperparameters(writer, self.checkpoint.config)
        writer.add_vocab_size(len(self.vocab.tokens))
        self.vocab.add_to(writer, self.checkpoint.root)


def model_file(checkpoint: Checkpoint, kind: str) -> ModelFile:
    """Everything checked before a byte is written. RefusedError names what is not written as GGUF."""
    if kind not in KINDS:
        raise RefusedError(f"{kind!r} is not written as GGUF", hint=f"known: {', '.join(KINDS)}")
    if checkpoint.config.get("quantization_config"):
        raise RefusedError(
            f"{checkpoint.ref} is quantised", hint="dequantise it first: surgeon apply a recipe of it with --dequantize"
        )
    names = naming(checkpoint.config)
    _check_config(checkpoint.config, checkpoint.ref)
    embedding = next((s for n, s in checkpoint.tensors.items() if n.endswith("embed_tokens.weight")), None)
    if embedding is None:
        raise RefusedError(f"{checkpoint.ref} holds no embedding")
    for tensor in checkpoint.tensors:
        names.name(tensor)
    return ModelFile(checkpoint, names, read_vocab(checkpoint.root, embedding.spec.shape[0]), kind)


def _check_config(config: Mapping[str, Any], ref: str) -> None:
    """Refuse what llama.cpp fixes otherwise for an architecture, so that it would compute something else."""
    kind = rope_scaling(config).get("rope_type")
    if kind not in (None, "linear", "llama3", "yarn"):
        raise RefusedError(f"{ref}: rotary scaling {kind!r} is not written as GGUF")
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    head, layers = int(config.get("head_dim") or width // heads), int(config["num_hidden_layers"])
    scalar = config.get("query_pre_attn_scalar")
    if scalar is not None and int(scalar) != attention_scalar(layers, width, heads, head):
        raise RefusedError(f"{ref}: llama.cpp has no query_pre_attn_scalar of {scalar} with heads of {head}")
    caps = [config.get(f"{kind}_logit_softcapping") for kind in ("attn", "final")]
    if config["model_type"] == "gemma2" and not all(caps):
        raise RefusedError(f"{ref}: llama.cpp caps the logits of every Gemma 2, and this one has no softcapping")


def _hyperparameters(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    from gguf import RopeScalingType

    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    head, scaling = int(config.get("head_dim") or width // heads), rope_scaling(config)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(width)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope_theta(config))
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        writer.add_sliding_window(int(config["sliding_window"]))
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(float(config["attn_logit_softcapping"]))
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(float(config["final_logit_softcapping"]))
    if scaling.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType[scaling["rope_type"].upper()])
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    if scaling.get("original_max_position_embeddings") and scaling["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(scaling["original_max_position_embeddings"]))


def _encoded(values: Tensor, kind: GGMLQuantizationType) -> tuple[np.ndarray, float]:
    """A tensor's bytes, and Σ(W − stored)²."""
    from gguf import dequantize, quantize

    if kind.name == "F32":
        return values.numpy(), 0.0
    data = quantize(values.numpy(), kind)
    again = torch.from_numpy(dequantize(data, kind)).reshape(values.shape)
    return data, float((again - values).double().square().sum())
