"""What would end or spoil a running server, found before it is called: names and shapes against what it serves."""

from __future__ import annotations

from pathlib import Path

from surgeon.errors import CheckpointError, MismatchError, RefusedError
from surgeon.measuring.serving.folder import Folder, look
from surgeon.measuring.serving.rules import Rules, read_by, rules_of
from surgeon.store.adapter import CONFIG, open_adapter
from surgeon.store.checkpoint import open_checkpoint
from surgeon.store.formats import listed
from surgeon.store.json_files import read_object
from surgeon.tensors import TensorSpec

#: Server as the command line has it → as the rules have it.
_RULES = {"vllm": "vLLM", "sglang": "SGLang"}


def check_weights(server: str, root: Path, base: Path | None) -> int:
    """The tensors that a server would take from a folder. MismatchError for what the base it serves does not have.

    A tensor the served model lacks ends vLLM's engine, and half a load leaves weights mixed.
    """
    folder = look(root)
    rules = rules_of(_RULES[server])
    held = _held(rules, folder)
    if base is None:
        return len(held)
    served = {name: stored.spec for name, stored in open_checkpoint(base, str(base)).tensors.items()}
    strange = [f"{name} ({held[name]})" for name in sorted(held.keys() - served.keys())]
    shaped = [
        f"{n}: {held[n]}, served {served[n]}" for n in sorted(held) if n in served and _differ(held[n], served[n])
    ]
    if faults := [*(f"{one} is not in what is served" for one in strange), *shaped]:
        hint = "give weights of the served model, its edited tensors alone or all"
        raise MismatchError(
            f"{root} does not fit {base}, which is served; the load would end or spoil {server}:\n  "
            f"{listed(faults, 12, lines=True)}",
            hint=hint,
        )
    return len(held)


def check_adapter(server: str, root: Path, base: Path | None) -> int:
    """The tensors an adapter changes. RefusedError for kinds the server does not take, MismatchError for misfits."""
    config = read_object(root / CONFIG)
    kinds = {
        "DoRA": config.get("use_dora"),
        f"bias: {config.get('bias')}": config.get("bias", "none") != "none",
        "modules_to_save": config.get("modules_to_save"),
    }
    if refused := [kind for kind, there in kinds.items() if there]:
        hint = "merge it into its base, and push the weights"
        raise RefusedError(f"{root}: {server} takes no adapter with {', '.join(refused)}", hint=hint)
    adapter = open_adapter(root, str(root))
    if base is not None:
        adapter.on({name: stored.spec for name, stored in open_checkpoint(base, str(base)).tensors.items()}, str(base))
    return len(adapter.updates)


def _held(rules: Rules, folder: Folder) -> dict[str, TensorSpec]:
    """The tensors of the files it would read. CheckpointError where it would read none, or others than are meant."""
    files = read_by(rules, folder).files
    damaged = [folder.damaged[name] for name in files if name in folder.damaged]
    if damaged or not files:
        found = damaged[0] if damaged else f"{folder.root}: holds no safetensors weights"
        raise CheckpointError(found, hint="give a folder with the weights, or with the edited tensors alone")
    if other := [name for name in files if name.startswith("consolidated")]:
        raise CheckpointError(
            f"{folder.root}: {rules.server} would read {other[0]} instead of the weights", hint="remove it"
        )
    return {name: folder.headers[file].tensors[name].spec for name, file in folder.holding(files).items()}


def _differ(one: TensorSpec, other: TensorSpec) -> bool:
    return one.shape != other.shape or one.is_float != other.is_float
