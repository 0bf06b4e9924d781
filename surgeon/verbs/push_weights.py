"""`surgeon push-weights`: switch a running server to other weights, or to an adapter, without a restart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import RefusedError

if TYPE_CHECKING:
    from surgeon.ship.servers.switch import Server
    from surgeon.ship.servers.switches import Call


@dataclass(frozen=True)
class PushReport:
    """The calls (method, URL, body), and what came of them: nothing yet in a dry run."""

    server: str
    calls: Sequence[tuple[str, str, Any]]
    done: bool
    models: Sequence[str]
    changed: bool | None
    notes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        calls = [{"method": method, "url": url, "body": body} for method, url, body in self.calls]
        return {
            "server": self.server,
            "done": self.done,
            "calls": calls,
            "models": list(self.models),
            "changed": self.changed,
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """A line a call, then what is served now."""
        lines = [
            f"{method} {url}" + ("" if body is None else f" {json.dumps(body)}") for method, url, body in self.calls
        ]
        lines += [f"note: {note}" for note in self.notes]
        if not self.done:
            return "\n".join([*lines, f"{self.server} was not called (dry run)"])
        known = {True: "answers otherwise than before", False: "answers as before", None: "could not be asked"}
        return "\n".join([*lines, f"{self.server} serves {', '.join(self.models)}; the base {known[self.changed]}"])


def push_weights(
    url: str,
    what: str | Path,
    *,
    name: str | None = None,
    scale: float | None = None,
    base: str | Path | None = None,
    server: str | None = None,
    remote_path: str | None = None,
    api_key: str = "",
    dry_run: bool = False,
    timeout: float = 600.0,
) -> PushReport:
    """Switch the server at a URL to other weights.

    `what` is a checkpoint or a folder with edited tensors (vLLM `reload_weights`, SGLang `update_weights_from_disk`), a
    PEFT adapter, served as `name` beside the base (`load_lora_adapter`), or the GGUF file of an adapter that llama.cpp
    was started with, which gets `scale`. Names and shapes are checked before, against `base`: by default the folder the
    server says it serves, where it lies on this machine. `remote_path` is what the server calls `what`. RefusedError
    for what would not fit; RunError where the server fails, with what it serves then.
    """
    from surgeon.ship.servers.http import server_url
    from surgeon.ship.servers.switch import Server, perform
    from surgeon.ship.servers.switches import models_of, switch_named

    address, path = server_url(url), Path(what).expanduser()
    models = models_of(address, api_key)
    signed = models[0].owner if models else ""
    if server is None and signed not in ("vllm", "sglang", "llamacpp"):
        raise RefusedError(
            f"{url} does not say what server it is (owned_by: {signed!r})",
            hint="say it: --server vllm, sglang or llamacpp",
        )
    running = Server(address, api_key, switch_named(server or signed), models)
    calls, notes = _calls(running, path, name, scale, base, remote_path)
    shown = [("POST", f"{address}{call.path}", call.body) for call in calls]
    if dry_run:
        return PushReport(running.switch.name, shown, False, [model.name for model in models], None, notes)
    found = perform(running, calls, timeout)
    return PushReport(running.switch.name, shown, True, found.models, found.changed, [*notes, *found.notes])


def _calls(
    server: Server, what: Path, name: str | None, scale: float | None, base: str | Path | None, remote: str | None
) -> tuple[list[Call], list[str]]:
    """The calls, filled in, and what could not be checked."""
    from surgeon.measuring.serving.guard import check_adapter, check_weights

    if server.switch.scale:
        return _scaled(server, what, scale), []
    if scale is not None:
        raise RefusedError(
            f"{server.switch.name} has no scale to set", hint="write it into the adapter, or push weights"
        )
    if not what.is_dir():
        raise RefusedError(
            f"{what}: no such folder", hint="give a checkpoint, edited tensors or an adapter, as a folder"
        )
    known = _served(server, base)
    notes = [] if known else ["names and shapes were not checked: what is served is not on this machine (--base MODEL)"]
    given: dict[str, Any] = {"path": remote or str(what.resolve())}
    if not (what / "adapter_config.json").exists():
        check_weights(server.switch.name, what, known)
        return [call.filled(given) for call in server.switch.weights], notes
    check_adapter(server.switch.name, what, known)
    given["name"] = name or what.resolve().name
    given["replace"] = any(model.name == given["name"] for model in server.models)
    if given["replace"] and not server.switch.replaces:
        raise RefusedError(
            f"{server.switch.name} serves {given['name']} already, and loads no adapter in its place",
            hint="give it another name: --name NAME",
        )
    return [call.filled(given) for call in server.switch.adapter], notes


def _scaled(server: Server, what: Path, scale: float | None) -> list[Call]:
    """llama.cpp: the scales of all its adapters, since it sets to 0 those that are not named."""
    answer = server.ask("GET", "/lora-adapters")
    held = answer.json if isinstance(answer.json, list) else []
    places = {str(entry["id"]): entry for entry in held}
    wanted = [id for id, entry in places.items() if what.name in (id, Path(entry["path"]).name)]
    if len(wanted) != 1:
        listed = ", ".join(f"{id}: {entry['path']}" for id, entry in places.items()) or "none"
        raise RefusedError(
            f"{what.name} is not one of the adapters llama.cpp was started with ({listed})",
            hint="start it with --lora FILE, and name that file here",
        )
    if scale is None:
        raise RefusedError("what scale is the adapter to have?", hint="--scale 1 for all of it, --scale 0 for none")
    given = [{"id": entry["id"], "scale": scale if id in wanted else entry["scale"]} for id, entry in places.items()]
    return [call.filled({"scales": given}) for call in server.switch.scale]


def _served(server: Server, base: str | Path | None) -> Path | None:
    """The folder that is served, where it lies on this machine."""
    from surgeon.store.source import locate

    if base is not None:
        return locate(str(base), probe=True)[0]
    roots = [model.root for model in server.models if not model.parent]
    if not any(root.startswith("/") for root in roots):
        roots += _told_path(server)
    return next((Path(root) for root in roots if root.startswith("/") and Path(root).is_dir()), None)


def _told_path(server: Server) -> list[str]:
    """SGLang tells its model's path by itself."""
    from surgeon.ship.servers.http import told

    found = told(server.ask("GET", "/get_model_info"), "model_path") if server.switch.name == "sglang" else None
    return [found] if isinstance(found, str) else []
