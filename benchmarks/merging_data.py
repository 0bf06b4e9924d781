"""What data-using methods are given: files, and the seconds it took to get them; measured once and kept.

A function takes the folders, the experts and an entry's settings; it gives the settings that the merge has and seconds.
Prompts are those of training, never the held-out ones; answers are not told, each expert gives its own. What guards
chat is measured on prompts other than those its cost is scored on.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from merging_grid import Settings
from questions import questions
from train_skills import CHAT

PROMPTS, TUNING, ANSWER, START = 64, 200, 16, 0.6
"""Prompts a skill for a Gram and for tuning, tokens of an answer, and the weights that tuning starts from."""

Folders = tuple[Path, Path, Path]
"""Of the base model, of the adapters, and to work in."""


def grams(folders: Folders, experts: Sequence[str], settings: Settings) -> tuple[Settings, float]:
    """The experts' Grams on their prompts, and the base's on chat."""
    found, seconds = _measured("gram", folders, experts)
    base, more = _measured("gram", folders, [None])
    return {**settings, "gram": found, "base_gram": base[0]}, seconds + more


def fishers(folders: Folders, experts: Sequence[str], settings: Settings) -> tuple[Settings, float]:
    """The experts' diagonal Fisher information on their prompts."""
    found, seconds = _measured("fisher", folders, experts)
    return {**settings, "fisher": found}, seconds


def tune(folders: Folders, experts: Sequence[str], settings: Settings) -> tuple[Settings, float]:
    """The recipe that `surgeon tune` makes of a plain sum."""
    model, adapters, work = folders
    out = work / "tuned" / "-".join([*experts, *(f"{name}{value}" for name, value in settings.items())])
    seconds = out / "seconds"
    if not seconds.exists():
        given = out.with_suffix(".yaml")
        out.parent.mkdir(parents=True, exist_ok=True)
        models = {"base": str(model)} | {expert: str(adapters / expert) for expert in experts}
        total = " + ".join(["base", *(f"{START} * {expert}" for expert in experts)])
        given.write_text(json.dumps({"surgeon": 1, "models": models, "steps": {"merged": {"combine": total}}}))
        prompts = [word for expert in experts for word in ("--prompts", f"{expert}={prompts_of(work, expert, TUNING)}")]
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        took = command("tune", given, *prompts, "--neutral", prompts_of(work, None), "--tokens", ANSWER, *options,
                       "--overwrite", "-o", out)  # fmt: skip
        seconds.write_text(f"{took}")
    return {"recipe": str(out / "recipe.yaml")}, float(seconds.read_text())


def prompts_of(work: Path, expert: str | None, count: int = PROMPTS) -> Path:
    """A file of training prompts of a skill, or of ordinary chat."""
    path = work / "prompts" / f"{expert}-{count}.jsonl" if expert else work / "prompts" / "chat.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    asked: Iterable[str] = (prompt for prompt, _ in questions(expert, "train", count, seed=5)) if expert else CHAT
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked))
    return path


def _measured(kind: str, folders: Folders, experts: Sequence[str | None]) -> tuple[list[str], float]:
    """Files of `surgeon measure KIND`, and the seconds of all commands, also where they were run earlier."""
    model, adapters, work = folders
    found, seconds = [], 0.0
    for expert in experts:
        path = work / "data" / f"{expert or 'base'}.{kind}.safetensors"
        if not path.with_suffix(".seconds").exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            adapter = ["--adapter", adapters / expert] if expert else []
            prompts = prompts_of(work, expert)
            took = command("measure", kind, model, *adapter, "--prompts", prompts, "--answer", ANSWER, "-o", path,
                           "--overwrite")  # fmt: skip
            path.with_suffix(".seconds").write_text(f"{took}")
        found.append(str(path))
        seconds += float(path.with_suffix(".seconds").read_text())
    return found, seconds


def command(*words: Any) -> float:
    """Run `surgeon …`; the seconds from start to exit. RuntimeError with what it said if it fails."""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "surgeon_cli", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"surgeon {' '.join(map(str, words))}: {done.stderr[-600:]}")
    return time.monotonic() - begun


DATA: Mapping[str, Callable[[Folders, Sequence[str], Settings], tuple[Settings, float]]] = {
    "grams": grams,
    "fishers": fishers,
    "tune": tune,
}
"""By the name that an entry of the table has under `data`."""
