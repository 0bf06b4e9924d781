"""What is refused, in words: files that are not safetensors and what converts them, long lists cut short."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import PurePath

from surgeon.errors import CheckpointError

#: Suffixes of files that hold pickles: loading one may run code, so none is ever opened.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_SIGNATURES = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes (a pickle inside)"),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
)


def listed(items: Sequence[str], most: int = 8, *, lines: bool = False) -> str:
    """The first items, in a line or one a line, and how many more there are."""
    shown = [*items[:most], *([f"and {len(items) - most} more"] if len(items) > most else [])]
    return ("\n  " if lines else ", ").join(shown)


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


def refuse_folder(names: Collection[str], where: str) -> CheckpointError:
    """The error for a folder without the weights looked for, by what lies there instead."""
    ggufs, pickles, others = (
        sorted(name for name in names if name.endswith(kind)) for kind in (".gguf", PICKLES, ".safetensors")
    )
    if ggufs:
        found = f"no safetensors weights, only GGUF: {listed(ggufs)}"
        hint = conversion("GGUF", str(PurePath(where) / ggufs[0]))
    elif pickles:
        found = f"no safetensors weights, only pickles, which are never opened: {listed(pickles)}"
        hint = (
            'convert it in an environment you trust: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{where}', dtype='auto', weights_only=True).save_pretrained('DIR')\""
        )
    elif others:
        found = f"neither model.safetensors nor an index; there are {listed(others)}"
        hint = f"name one file itself: {PurePath(where) / others[0]}"
    else:
        found = "no model.safetensors and no model.safetensors.index.json"
        hint = "give the folder with the weights, a .safetensors file, or a Hub id org/name"
    return CheckpointError(f"{where}: {found}", hint=hint)


def refuse_adapter(names: Collection[str], where: str) -> CheckpointError:
    """The error for an adapter folder without adapter_model.safetensors."""
    if "adapter_model.bin" not in names:
        found = f"{where}: no adapter_model.safetensors"
        return CheckpointError(found, hint="the adapter is incomplete: fetch or save it again")
    found = f"{where}: adapter_model.bin is a pickle, which is never opened"
    command = conversion("a pickle", f"{where}/adapter_model.bin", f"{where}/adapter_model.safetensors")
    return CheckpointError(found, hint=command)
