"""Calls made to a running server, and what it serves afterwards, found by asking it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.errors import RunError
from surgeon.ship.servers.http import Answer, ask, told
from surgeon.ship.servers.switches import Call, Model, Switch, models_of

#: Two answers of the same weights differ by less than this; a switch that changed less changed nothing to be seen.
_NOISE = 0.02
_PROMPT = "Once upon a time there was a"
_TOKENS = 8


@dataclass(frozen=True)
class Voice:
    """What a model says to a fixed prompt, greedily: its text, and the log-probabilities where they are told."""

    text: str
    logprobs: tuple[float, ...]

    def same(self, other: Voice) -> bool:
        """Whether another answer may come from the same weights."""
        pairs = zip(self.logprobs, other.logprobs, strict=False)
        return self.text == other.text and all(abs(one - two) <= _NOISE for one, two in pairs)


@dataclass(frozen=True)
class Server:
    """A server that runs: its address and key (never printed), its entry in the table, what it served at first."""

    url: str
    key: str
    switch: Switch
    models: Sequence[Model]

    def ask(self, method: str, path: str, body: Any = None, timeout: float = 60.0) -> Answer:
        """One request. RunError where no answer comes."""
        return ask(method, f"{self.url}{path}", body, key=self.key, timeout=timeout)

    def voice(self) -> Voice | None:
        """What the base says now; None where it does not answer."""
        base = next((model.name for model in self.models if not model.parent), "")
        body = {"model": base, "prompt": _PROMPT, "max_tokens": _TOKENS, "temperature": 0, "logprobs": 1}
        try:
            answer = self.ask("POST", "/v1/completions", body)
        except RunError:
            return None
        text = told(answer, "choices", 0, "text")
        if not answer.ok or text is None:
            return None
        listed = told(answer, "choices", 0, "logprobs", "token_logprobs")
        entries = told(answer, "choices", 0, "logprobs", "content")
        if isinstance(entries, list):
            listed = [entry.get("logprob") for entry in entries]
        return Voice(text, tuple(float(one) for one in listed or () if one is not None))

    def state(self, before: Voice | None) -> str:
        """In words, after a call failed: whether it serves, and whether the old weights."""
        restart = (
            f"start it again with its old weights ({', '.join(model.root or model.name for model in self.models)})"
        )
        try:
            health = self.ask("GET", "/health", timeout=30)
            served = [model.name for model in models_of(self.url, self.key)] if health.ok else []
        except RunError:
            return f"it no longer answers: {restart}"
        if not health.ok:
            return f"it no longer serves (its health check says {health.status}): {restart}"
        listed = f"healthy, serving {', '.join(served)}"
        after = self.voice()
        if before is None or after is None:
            lost = (
                "it no longer answers a prompt" if before is not None else "whether with the old weights is not known"
            )
            return f"it is {listed}; {lost}: {restart}"
        if after.same(before):
            return f"it still serves the old weights ({listed})"
        return f"it is {listed}, but answers otherwise than before, so its weights may be mixed: {restart}"


@dataclass(frozen=True)
class Switched:
    """What was done: the calls with their answers, what is served now, whether the base answers otherwise than before.

    `changed` is None where it could not be asked; `notes` are optional calls that the server lacks.
    """

    calls: Sequence[tuple[Call, Answer]]
    models: Sequence[str]
    changed: bool | None
    notes: Sequence[str]


def perform(server: Server, calls: Sequence[Call], timeout: float) -> Switched:
    """Make the calls in their order. RunError at the first that fails, with what the server serves then."""
    before = server.voice()
    done: list[tuple[Call, Answer]] = []
    notes: list[str] = []
    for call in calls:
        answer = _made(server, call, before, timeout)
        if call.accepted(answer):
            done.append((call, answer))
        elif call.optional:
            notes.append(f"POST {call.path} answered {answer.status}: answers cached before may be given once more")
        else:
            raise _failure(server, call, f"answered {answer}", before, missing=answer.status == 404)
    after = server.voice()
    changed = None if before is None or after is None else not after.same(before)
    return Switched(done, [model.name for model in models_of(server.url, server.key)], changed, notes)


def _made(server: Server, call: Call, before: Voice | None, timeout: float) -> Answer:
    try:
        return server.ask("POST", call.path, call.body, timeout)
    except RunError as error:
        raise _failure(server, call, f"got no answer ({error.message})", before) from error


def _failure(server: Server, call: Call, what: str, before: Voice | None, *, missing: bool = False) -> RunError:
    hint = f"{server.switch.name} must be started with {server.switch.started}" if missing else "read the server's log"
    return RunError(
        f"{server.switch.name} was not switched: POST {call.path} {what}; {server.state(before)}", hint=hint
    )
