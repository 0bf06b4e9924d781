"""The calls that switch a running server to other weights: one declared entry a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.errors import RefusedError
from surgeon.ship.servers.http import Answer, ask, told


@dataclass(frozen=True)
class Call:
    """One request. In the body a value `{path}`, `{name}`, `{replace}` or `{scales}` stands for what is given.

    `done` is a key of the answer that must be true where it is there; `optional`: a server may lack the endpoint.
    """

    path: str
    body: Any
    done: str = "success"
    optional: bool = False

    def filled(self, given: Mapping[str, Any]) -> Call:
        """The call with what is given in its places."""
        return Call(self.path, _filled(self.body, given), self.done, self.optional)

    def accepted(self, answer: Answer) -> bool:
        """Whether an answer says that it was done."""
        return answer.ok and told(answer, self.done) is not False


@dataclass(frozen=True)
class Switch:
    """A server: how /v1/models signs its entries, the calls for whole weights, for an adapter and for a scale.

    `started` says what it must be started with. `replaces`: an adapter of a name that is served may be loaded anew.
    """

    name: str
    weights: tuple[Call, ...] = ()
    adapter: tuple[Call, ...] = ()
    scale: tuple[Call, ...] = ()
    started: str = ""
    replaces: bool = False


_RESET = Call("/reset_prefix_cache", None)

SWITCHES: Sequence[Switch] = (
    Switch(
        "vllm",
        weights=(
            Call("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": "{path}"}}),
            _RESET,
        ),
        adapter=(
            Call("/v1/load_lora_adapter", {"lora_name": "{name}", "lora_path": "{path}", "load_inplace": "{replace}"}),
            Call(_RESET.path, None, optional=True),
        ),
        started="VLLM_SERVER_DEV_MODE=1 for weights; --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 for adapters",
        replaces=True,
    ),
    Switch(
        "sglang",
        weights=(Call("/update_weights_from_disk", {"model_path": "{path}", "flush_cache": True}),),
        adapter=(Call("/load_lora_adapter", {"lora_name": "{name}", "lora_path": "{path}"}),),
        started="--enable-lora --max-lora-rank R --lora-target-modules all for adapters",
    ),
    Switch("llamacpp", scale=(Call("/lora-adapters", "{scales}"),), started="--lora FILE for every adapter"),
)


def switch_named(name: str) -> Switch:
    """The entry of a server as `--server` takes it."""
    found = next((switch for switch in SWITCHES if switch.name == name), None)
    if found is None:
        known = ", ".join(switch.name for switch in SWITCHES)
        raise RefusedError(f"{name!r} is no server whose weights can be switched while it runs", hint=f"known: {known}")
    return found


@dataclass(frozen=True)
class Model:
    """An entry of a server's list of models: its name, who signs it, where its files are ('' where it is not told)."""

    name: str
    owner: str
    root: str
    parent: str = ""


def models_of(url: str, key: str) -> tuple[Model, ...]:
    """What a server serves. RefusedError where it has no list of models."""
    answer = ask("GET", f"{url}/v1/models", key=key, timeout=30)
    data = told(answer, "data")
    if not answer.ok or not isinstance(data, list):
        hint = "give the server's address, and its key by SURGEON_API_KEY where it asks for one"
        raise RefusedError(f"{url}/v1/models answered {answer}: no list of models", hint=hint)
    entries = [entry for entry in data if isinstance(entry, Mapping)]
    return tuple(Model(*(str(entry.get(k) or "") for k in ("id", "owned_by", "root", "parent"))) for entry in entries)


def _filled(value: Any, given: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(inner, given) for key, inner in value.items()}
    place = isinstance(value, str) and value.startswith("{") and value.endswith("}")
    return given[value[1:-1]] if place else value
