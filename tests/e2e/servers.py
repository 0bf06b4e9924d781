"""Real inference servers, started as subprocesses on 127.0.0.1, and asked over HTTP for greedy token ids.

Each ``serve_*`` is a context manager that yields a client with ``complete(prompt, max_tokens) -> token ids``. How exact
those ids are differs: mlx_lm and vLLM report the ids themselves; ``transformers serve`` reports text alone, but streams
it token by token, so each piece names one entry of the vocabulary. Ids include the end-of-text token where one came.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

START_SECONDS = 240.0
ANSWER_SECONDS = 120.0
MAX_TOKENS = 16
# Continued in plain ASCII; the last is the chat template filled in.
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "def add(a, b):",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
)
# One thread: on few cores, idle threads that spin slow a small model down more than a second thread helps.
SETTINGS = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


class ServerError(RuntimeError):
    """A server is not installed, did not start, or did not answer; holds the end of its output."""


@dataclass(frozen=True)
class Greedy:
    """What transformers answers: the token ids, and by how much each led the runner-up (logits, float32)."""

    prompt: str
    ids: list[int]
    margins: list[float]


@dataclass(frozen=True)
class Client:
    """A running server holding one checkpoint folder."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]
    log: Path

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's own tokenizer, as transformers loads it."""
        return load_tokenizer(self.folder)

    def complete(self, prompt: str, max_tokens: int) -> list[int]:
        """Return the ids of the greedy continuation of ``prompt``."""
        raise NotImplementedError

    def request(self, path: str, body: dict[str, Any]) -> Iterator[bytes]:
        """POST ``body`` as JSON and yield the lines of the answer."""
        headers = {"Content-Type": "application/json"}
        call = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with _direct().open(call, timeout=ANSWER_SECONDS) as answer:
                yield from answer
        except urllib.error.HTTPError as error:
            raise self.failure(f"answered {error.code}: {error.read().decode(errors='replace')}") from error
        except OSError as error:
            raise self.failure(f"did not answer: {error}") from error

    def failure(self, what: str) -> ServerError:
        """Build the error that says what happened and shows the end of the server's output."""
        tail = self.log.read_text(errors="replace")[-4000:]
        return ServerError(f"the server of {self.folder} {what}\n--- end of its output ---\n{tail}")

    def check_prompt(self, prompt: str, counted: int) -> None:
        """Refuse an answer whose server read another number of prompt tokens than the folder's tokenizer gives."""
        expected = len(self.tokenizer(prompt).input_ids)
        if counted != expected:
            raise self.failure(f"read the prompt {prompt!r} as {counted} tokens, the tokenizer gives {expected}")


class TransformersClient(Client):
    """``transformers serve``: text prompts, streamed text answers."""

    def complete(self, prompt: str, max_tokens: int) -> list[int]:
        """Return the ids, read off the streamed pieces of text."""
        body = {"model": str(self.folder), "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
        chunks = [json.loads(line[6:]) for line in self.request("/v1/completions", body) if line.startswith(b"data: {")]
        if not chunks or not chunks[-1].get("usage"):
            raise self.failure(f"broke off the answer to {prompt!r}: {chunks[-1:]}")
        self.check_prompt(prompt, chunks[-1]["usage"]["prompt_tokens"])
        ids = [self._id(chunk["choices"][0]["text"]) for chunk in chunks[:-1]]
        if chunks[-1]["choices"][0]["finish_reason"] == "stop":
            ids.append(self.tokenizer.eos_token_id)
        if len(ids) != chunks[-1]["usage"]["completion_tokens"]:
            raise self.failure(f"streamed {len(ids)} pieces for {chunks[-1]['usage']['completion_tokens']} tokens")
        return ids

    def _id(self, piece: str) -> int:
        ids = self.tokenizer(piece, add_special_tokens=False).input_ids
        if len(ids) != 1 or "\ufffd" in piece:
            raise self.failure(f"streamed {piece!r}, which is no single token; ask something answered in plain ASCII")
        return ids[0]


class MlxClient(Client):
    """``mlx_lm.server``: text prompts; the log-probabilities it returns carry the ids."""

    def complete(self, prompt: str, max_tokens: int) -> list[int]:
        """Return the ids reported beside the log-probabilities."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "logprobs": True}
        answer = json.loads(b"".join(self.request("/v1/completions", body)))
        self.check_prompt(prompt, answer["usage"]["prompt_tokens"])
        return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]


class VllmClient(Client):
    """vLLM's OpenAI server: prompts and answers as token ids."""

    def complete(self, prompt: str, max_tokens: int) -> list[int]:
        """Return the ids that vLLM reports."""
        ids = self.tokenizer(prompt).input_ids
        body = {"model": "served", "prompt": ids, "max_tokens": max_tokens, "temperature": 0, "return_token_ids": True}
        answer = json.loads(b"".join(self.request("/v1/completions", body)))
        return answer["choices"][0]["token_ids"]


@contextmanager
def serve_transformers(python: str, folder: Path) -> Iterator[Client]:
    """Run ``transformers serve`` on the folder, in float32 whatever the files hold."""
    require(python, "make e2e", "transformers", "fastapi", "uvicorn", "openai")
    options = ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port"]
    command = [python, "-m", "transformers.cli.transformers", "serve", str(folder), *options]
    with _running(TransformersClient, command, folder) as client:
        yield client


@contextmanager
def serve_mlx(python: str, folder: Path) -> Iterator[Client]:
    """Run ``mlx_lm.server`` on the folder; it computes in the dtype of the files."""
    require(python, "make e2e", "mlx", "mlx_lm")
    command = [python, "-m", "mlx_lm", "server", "--model", str(folder), "--host", "127.0.0.1", "--port"]
    with _running(MlxClient, command, folder) as client:
        yield client


@contextmanager
def serve_vllm(python: str, folder: Path) -> Iterator[Client]:
    """Run vLLM's OpenAI server on the folder, on the CPU and in float32."""
    require(python, "make e2e-vllm", "vllm")
    options = ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--served-model-name", "served"]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *options]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with _running(VllmClient, [*command, "--host", "127.0.0.1", "--port"], folder, settings) as client:
        yield client


def server_python(variable: str) -> str:
    """Return the interpreter whose environment holds a server: the environment variable's, else this one."""
    return os.environ.get(variable) or sys.executable


def require(python: str, target: str, *modules: str) -> None:
    """Raise unless ``python`` can import the modules; the message names the command that installs them."""
    probe = "import importlib.util, sys; print(*[m for m in sys.argv[1:] if not importlib.util.find_spec(m)])"
    found = subprocess.run([python, "-c", probe, *modules], capture_output=True, text=True, check=False)
    if found.returncode or found.stdout.strip():
        missing = found.stdout.strip() or f"a working interpreter: {found.stderr.strip()[-300:]}"
        raise ServerError(f"{python} lacks {missing}; `{target}` makes an environment that has what these checks need")


def load_tokenizer(folder: Path) -> Any:
    """Load the folder's tokenizer with transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def reference(folder: Path, prompts: Iterable[str] = PROMPTS, max_tokens: int = MAX_TOKENS) -> list[Greedy]:
    """Answer the prompts greedily with transformers, in float32, in this process."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer = load_tokenizer(folder)
    return [_greedy(model, tokenizer, prompt, max_tokens) for prompt in prompts]


def _greedy(model: Any, tokenizer: Any, prompt: str, max_tokens: int) -> Greedy:
    inputs = tokenizer(prompt, return_tensors="pt")
    settings = {"do_sample": False, "max_new_tokens": max_tokens}
    answer = model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
    leaders = [step[0].topk(2).values for step in answer.logits]
    ids = answer.sequences[0, inputs.input_ids.shape[1] :].tolist()
    return Greedy(prompt, ids, [float(first - second) for first, second in leaders])


def disagreement(expected: Greedy, ids: list[int]) -> str | None:
    """Say where a server's ids leave the reference and how close the call was there; None where they agree."""
    if ids == expected.ids:
        return None
    pairs = zip(ids, expected.ids, strict=False)
    at = next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(ids), len(expected.ids)))
    margin = f"; there transformers preferred its token by {expected.margins[at]:.2g}" if at < len(expected.ids) else ""
    return f"{expected.prompt!r}: token {at}: served {ids[at:][:4]}, transformers {expected.ids[at:][:4]}{margin}"


def disagreements(client: Client, expected: Iterable[Greedy], max_tokens: int = MAX_TOKENS) -> list[str]:
    """Ask the server every prompt of the reference; return what it answered otherwise."""
    found = (disagreement(greedy, client.complete(greedy.prompt, max_tokens)) for greedy in expected)
    return [text for text in found if text is not None]


@contextmanager
def _running(
    kind: type[Client], command: list[str], folder: Path, settings: dict[str, str] | None = None
) -> Iterator[Client]:
    """Start the command with a free port appended, wait until it is healthy, and stop it in any case."""
    port = _free_port()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | SETTINGS | (settings or {})
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch, "output.txt")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, str(port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=scratch,
                env=environment,
                start_new_session=True,
            )
        try:
            client = kind(f"http://127.0.0.1:{port}", folder, process, log)
            _wait(client)
            yield client
        finally:
            _stop(process)


def _wait(client: Client) -> None:
    """Wait until the server says it is healthy; 503 means that it runs but its model has failed."""
    deadline = time.monotonic() + START_SECONDS
    while (status := _health(client.url)) != 200:
        if client.process.poll() is not None:
            raise client.failure(f"ended with status {client.process.returncode} before it was ready")
        if status == 503:
            raise client.failure("could not load the model")
        if time.monotonic() > deadline:
            raise client.failure(f"was not ready after {START_SECONDS:.0f} s")
        time.sleep(0.5)


def _health(url: str) -> int | None:
    """Return the status of the health check, None while nothing listens."""
    try:
        with _direct().open(url + "/health", timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and every process it started: they share its session."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(timeout=20)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _direct() -> urllib.request.OpenerDirector:
    """An opener that ignores proxy settings: the servers are on this machine."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
