"""Loading a checkpoint folder as a model that runs: local files only, never code that comes with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from surgeon.anatomy.describe import Anatomy, describe
from surgeon.errors import CheckpointError, MismatchError, RefusedError
from surgeon.store.checkpoint import Checkpoint, open_checkpoint
from surgeon.tensors import FLOATS

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in eval mode, its tokenizer (None where the folder has none), and what its tensors are.

    `device` is where its inputs go.
    """

    model: Any
    tokenizer: Any
    anatomy: Anatomy
    folder: Path
    device: torch.device

    @property
    def trunk(self) -> Any:
        """The bare language model, without its head."""
        return self.model.base_model.get_submodule(self.anatomy.family.language)

    @property
    def blocks(self) -> Any:
        """The modules of its blocks, in order."""
        return getattr(self.trunk, self.anatomy.family.blocks)

    @property
    def has_chats(self) -> bool:
        """Whether prompts and messages can be put into its chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def config(self) -> Any:
        """The config of the language model."""
        return self.model.config.get_text_config()


def load(folder: Path, *, dtype: str = "float32", device: str = "auto", device_map: str | None = None) -> Loaded:
    """The causal language model in a folder. With `device_map` (``auto``, …) accelerate spreads it over the devices.

    CheckpointError where transformers cannot load it or tensors are missing, MismatchError for an architecture without
    a table, RefusedError for a dtype or device that is not there.
    """
    folder = Path(folder)
    place = None if device_map is not None else _device(device)
    checkpoint = open_checkpoint(folder, str(folder))
    anatomy = _anatomy(checkpoint)
    model = load_model(folder, dtype, device_map=device_map)
    with quiet():
        tokenizer = load_tokenizer(folder)
    model.requires_grad_(False)
    if place is not None:
        model = model.to(place)
    return Loaded(model, tokenizer, anatomy, folder, place or model.device)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    return any((folder / name).exists() for name in _TOKENIZER_FILES)


def _anatomy(checkpoint: Checkpoint) -> Anatomy:
    if checkpoint.single_file or not checkpoint.config:
        raise CheckpointError(f"{checkpoint.ref}: a folder with a config.json is needed to run a model")
    if checkpoint.config.get("quantization_config"):
        raise MismatchError(
            f"{checkpoint.ref} is quantised (its config.json has quantization_config)",
            hint="use the model in bf16 or fp32: `surgeon apply` a recipe of it with --dequantize",
        )
    table = {name: stored.spec for name, stored in checkpoint.tensors.items()}
    return describe(checkpoint.config, table, checkpoint.ref)


def load_model(folder: Path, dtype: str | None = None, *, device_map: Any = None, offload_folder: Any = None) -> Any:
    """The bare transformers model in a folder, in the checkpoint's own dtype unless one is given."""
    if dtype not in (None, *FLOATS.values()):
        raise RefusedError(f"{dtype!r} is no dtype to run in", hint=f"use {', '.join(FLOATS.values())}")
    kind = str(open_checkpoint(folder, str(folder)).config.get("model_type", ""))
    with quiet():
        return _model(folder, kind, getattr(torch, dtype) if dtype else "auto", device_map, offload_folder)


def _class(model_type: str) -> Any:
    """The auto class that loads this type with its language model's head: models that see have one of their own."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as known

    seeing = model_type in known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return AutoModelForImageTextToText if seeing else AutoModelForCausalLM


def _model(folder: Path, model_type: str, dtype: torch.dtype | str, device_map: Any, offload_folder: Any) -> Any:
    loading: Any = _class(model_type).from_pretrained
    try:
        model, report = loading(
            folder, dtype=dtype, device_map=device_map, offload_folder=offload_folder, local_files_only=True,
            trust_remote_code=False, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        hint = "check that transformers alone loads it: AutoModelForCausalLM.from_pretrained"
        raise CheckpointError(f"{folder}: transformers cannot load it: {_first_line(error)}", hint=hint) from error
    faults = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    faults += [f"{name} is {list(found)}, not {list(wanted)}" for name, found, wanted in report["mismatched_keys"]]
    if faults:
        listed = "\n    ".join(faults[:12]) + ("\n    …" if len(faults) > 12 else "")
        raise CheckpointError(f"{folder} does not hold the model its config.json describes:\n    {listed}")
    return model


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, None where there is none. CheckpointError where transformers cannot load it."""
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        hint = "repair the tokenizer's files, or remove them where token ids are all that is needed"
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded: {_first_line(error)}", hint=hint) from error


def _device(name: str) -> torch.device:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise RefusedError(f"{name!r} is not a device", hint="use auto, cpu, cuda, cuda:N, xpu or mps") from None
    count = 1 if found.type == "cpu" else torch.accelerator.device_count() if _same(accelerator, found) else 0
    if (found.index or 0) >= count:
        raise RefusedError(f"there is no {name} device here", hint=f"use auto, cpu{f' or {accelerator}' * bool(count)}")
    return found


def _same(accelerator: torch.device | None, found: torch.device) -> bool:
    return accelerator is not None and accelerator.type == found.type


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Neither progress bars nor warnings of transformers; both are as they were afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
