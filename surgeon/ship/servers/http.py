"""JSON over HTTP with the standard library: the packages that carry HTTP here change from release to release.

Proxies of the environment are used, except towards this machine.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from surgeon.errors import RefusedError, RunError

_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Answer:
    """A status and the text that came with it."""

    status: int
    text: str

    @property
    def ok(self) -> bool:
        """Whether the status is a success."""
        return 200 <= self.status < 300

    @property
    def json(self) -> Any:
        """The text as JSON, None where it is none."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None

    def __str__(self) -> str:
        short = " ".join(self.text.split())
        return f"{self.status}: {short[:300]}{'…' if len(short) > 300 else ''}" if short else str(self.status)


def server_url(text: str) -> str:
    """The URL of a server without a slash at its end; RefusedError for anything else than http(s)://host."""
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and parts.hostname and not parts.query and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise RefusedError(f"{text!r} is no server's URL", hint="write http://HOST:PORT")
    return text.rstrip("/").removesuffix("/v1")


def ask(method: str, url: str, body: Any = None, *, key: str = "", timeout: float = 120.0) -> Answer:
    """One request; a status of failure is an answer too. RunError where none comes."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with _opener(url).open(request, timeout=timeout) as reply:
            return Answer(reply.status, reply.read().decode(errors="replace"))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode(errors="replace"))
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        hint = "check that the server runs and that the address is right"
        raise RunError(f"{method} {url}: no answer ({reason})", hint=hint) from error


def told(answer: Answer, *path: str | int) -> Any:
    """What lies at a path of an answer's JSON; None where any part of it is missing."""
    found: Any = answer.json
    try:
        for part in path:
            found = found[part]
    except (KeyError, IndexError, TypeError):
        return None
    return found


def _opener(url: str) -> urllib.request.OpenerDirector:
    local = urlsplit(url).hostname in _LOCAL
    return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
