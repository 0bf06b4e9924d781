"""Trains the six specialists that `merging.py` merges: LoRA adapters of SmolLM2-135M-Instruct, on one CPU thread.

    python benchmarks/train_skills.py --model DIR --out ADAPTERS

Rank 16 on all seven projections of every block. A step is some questions of the skill by cross-entropy and some replies
of the base model to ordinary chat by KL divergence from the base; nothing is said about the other skills. Each adapter
is saved, and scored on held-out questions, as soon as it is trained; one that is there already is left alone.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from packing import Packed, pack
from peft import LoraConfig, PeftModel, get_peft_model
from questions import MERGE_SKILLS, held_out, questions
from skills import MODULES, Example, answers, encode, save
from torch import Tensor
from train_adapters import BASE_NAME
from transformers import AutoModelForCausalLM, AutoTokenizer

CHAT = """Hello! How are you?
What is the capital of France?
Write one sentence about the sea.
Why is the grass green?
Name three fruits.
How do I boil an egg?
Tell me a short story about a fox.
What is a good way to learn a language?
Can you recommend a book?
I slept badly last night.
Explain what a comet is.
Who wrote Romeo and Juliet?
Give me two tips for a job interview.
What should I cook for four people?
Translate good morning into Spanish.
My computer is slow. What can I do?
Write a haiku about winter.
How far away is the moon?
Summarize the water cycle in two sentences.
What is the difference between a crocodile and an alligator?
List the primary colors.
Is it safe to swim after eating?
Write an email asking for a day off.
How many players are in a football team?
What does photosynthesis mean?
I want to start running. Any advice?
Describe a busy train station.
Correct this sentence: She go to school every day.
What is the largest ocean?
Give me a name for a small bakery.
How do airplanes stay in the air?
Say something nice about Mondays.""".splitlines()


@dataclass(frozen=True)
class Schedule:
    """How one specialist is trained."""

    steps: int = 70
    questions: int = 8
    chats: int = 2
    rank: int = 16
    rate: float = 1e-3
    guard: float = 1.0
    reply: int = 24
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """What the base model says to a chat prompt, and its log-probabilities there [tokens, vocabulary]."""

    row: Example
    logprobs: Tensor


@torch.no_grad()
def base_replies(model: Any, tokenizer: Any, length: int) -> list[Reply]:
    """The base model's own replies to ordinary chat, and how likely it finds each token."""
    said = answers(model, tokenizer, CHAT, length)
    rows = [encode(tokenizer, question) for question in zip(CHAT, said, strict=True)]
    # The last token is the end that `encode` adds; where a reply was cut off it is not the model's own.
    rows = [Example(row.ids[:-1], row.start) for row in rows]
    return [Reply(row, pack([row]).logits(model).log_softmax(-1)) for row in rows]


def adapted(model: Any, how: Schedule) -> PeftModel:
    """The model with a fresh adapter, the only part that learns."""
    torch.manual_seed(how.seed)
    config = LoraConfig(r=how.rank, lora_alpha=2 * how.rank, target_modules=list(MODULES), task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def teach(peft: PeftModel, tokenizer: Any, skill: str, replies: Sequence[Reply], how: Schedule) -> None:
    """Train the adapter on a skill, chat kept as the base has it."""
    trained = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=how.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.rate, how.steps, pct_start=0.15)
    examples = [encode(tokenizer, question) for question in questions(skill, "train", 2000, how.seed)]
    rng, begun = Random(how.seed), time.monotonic()
    for step in range(1, how.steps + 1):
        task, chats = rng.sample(examples, how.questions), rng.sample(replies, how.chats)
        loss, drift = losses(peft.get_base_model(), pack([*task, *(chat.row for chat in chats)]), len(task), chats)
        optimizer.zero_grad()
        (loss + how.guard * drift).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            pace = (time.monotonic() - begun) / step
            print(f"{skill} {step}/{how.steps} loss {loss:.4f} drift {drift:.4f} {pace:.2f} s/step", flush=True)


def losses(model: Any, packed: Packed, tasks: int, chats: Sequence[Reply]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the answers, and KL(base ‖ adapted) a token of the chats' replies."""
    logits = packed.logits(model)
    asked = packed.rows < tasks
    before = torch.cat([chat.logprobs for chat in chats])
    drift = F.kl_div(logits[~asked].log_softmax(-1), before, log_target=True, reduction="batchmean")
    return F.cross_entropy(logits[asked], packed.targets[asked]), drift


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, skill: str, n: int) -> float:
    """The share of held-out questions answered exactly."""
    rows = [encode(tokenizer, question) for question in held_out(skill, 32, n)[1]]
    right = [hit for at in range(0, n, 32) for hit in pack(rows[at : at + 32]).right(model)]
    return sum(right) / n


def specialist(folder: Path, out: Path, skill: str, replies: Sequence[Reply], how: Schedule, n: int) -> dict[str, Any]:
    """Train, save and score one adapter."""
    model, tokenizer = load(folder)
    base, begun = accuracy(model, tokenizer, skill, n), time.monotonic()
    peft = adapted(model, how)
    teach(peft, tokenizer, skill, replies, how)
    took = round(time.monotonic() - begun)
    own = accuracy(peft.get_base_model(), tokenizer, skill, n)
    save(peft, out / skill, BASE_NAME)
    return {"skill": skill, "base": base, "specialist": own, "steps": how.steps, "seconds": took}


def load(folder: Path) -> tuple[Any, Any]:
    """The base model in bfloat16, as it is stored and as CPUs multiply quickest, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def main() -> None:
    """Train what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapters")
    parser.add_argument("--skills", nargs="*", default=MERGE_SKILLS, choices=MERGE_SKILLS)
    parser.add_argument("--steps", type=int, default=Schedule.steps)
    parser.add_argument("--questions", type=int, default=64, help="held-out questions a skill")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    replies = base_replies(*load(options.model), Schedule.reply)
    for skill in options.skills:
        if not (options.out / skill).exists():
            how = Schedule(steps=options.steps)
            row = specialist(options.model, options.out, skill, replies, how, options.questions)
            (options.out / skill / "trained.json").write_text(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
