"""Files that are not safetensors: how they are recognised, and the command that converts them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePath

from surgeon.errors import CheckpointError

#: Suffixes of files that hold pickles: loading one may run code, so none is ever opened.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_SIGNATURES = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes (a pickle inside)"),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
)


def disguise(start: bytes) -> str:
    """What a file that begins with `start` really is; '' when unknown."""
    for signature, name in _SIGNATURES:
        if start.startswith(signature[: len(start)]) and len(start) >= 4:
            return name
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle"
    return ""


def conversion(kind: str, path: str, output: str = "model.safetensors") -> str:
    """The next step for a file of this kind; of a pickle, the command that writes `output`."""
    if "GGUF" in kind:
        return f"surgeon import {path} -o DIR"
    if "LFS" in kind:
        return "run `git lfs pull` in that folder"
    return (
        'convert it in an environment you trust: python -c "import torch; from safetensors.torch import save_file; '
        f"t = torch.load('{path}', map_location='cpu', weights_only=True); "
        f"save_file({{k: v.clone().contiguous() for k, v in t.items()}}, '{output}', {{'format': 'pt'}})\""
    )


def folder_conversion(folder: str) -> str:
    """The next step for a whole model saved as pickles."""
    return (
        'convert it in an environment you trust: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}', dtype='auto', weights_only=True).save_pretrained('DIR')\""
    )


def refuse_folder(names: Collection[str], where: str) -> CheckpointError:
    """The error for a folder without the weights looked for, by what lies there instead."""
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if ggufs:
        found = f"{where}: no safetensors weights, only GGUF: {_some(ggufs)}"
        return CheckpointError(found, hint=conversion("GGUF", str(PurePath(where) / ggufs[0])))
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        found = f"{where}: no safetensors weights, only pickles, which are never opened: {_some(pickles)}"
        return CheckpointError(found, hint=folder_conversion(where))
    others = sorted(name for name in names if name.endswith(".safetensors"))
    if others:
        found = f"{where}: neither model.safetensors nor an index; there are {_some(others)}"
        return CheckpointError(found, hint=f"name one file itself: {PurePath(where) / others[0]}")
    found = f"{where}: no model.safetensors and no model.safetensors.index.json"
    return CheckpointError(found, hint="give the folder with the weights, a .safetensors file, or a Hub id org/name")


def refuse_adapter(names: Collection[str], where: str) -> CheckpointError:
    """The error for an adapter folder without adapter_model.safetensors."""
    if "adapter_model.bin" not in names:
        found = f"{where}: no adapter_model.safetensors"
        return CheckpointError(found, hint="the adapter is incomplete: fetch or save it again")
    found = f"{where}: adapter_model.bin is a pickle, which is never opened"
    command = conversion("a pickle", f"{where}/adapter_model.bin", f"{where}/adapter_model.safetensors")
    return CheckpointError(found, hint=command)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
