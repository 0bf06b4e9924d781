"""Teaches skills to a chat model by LoRA and scores them: what the two training scripts share."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from questions import Question, questions, score
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Teaching:
    """How one adapter is trained."""

    steps: int = 64
    batch: int = 8
    guards: int = 2  # rows of each batch that must answer as the base model does
    others: int = 4  # prompts of each other skill to answer so
    rank: int = 8
    rate: float = 1e-3
    examples: int = 2000
    seed: int = 0
    modules: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    layers: Sequence[int] | None = None


@dataclass(frozen=True)
class Example:
    """A templated conversation as token ids; the answer begins at ``start``."""

    ids: list[int]
    start: int


def templated(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The token ids of a prompt in the chat template, up to where the answer begins."""
    message = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return tokenizer(str(text), add_special_tokens=False)["input_ids"]  # type: ignore[return-value]


def encode(tokenizer: PreTrainedTokenizerBase, question: Question) -> Example:
    """A question with its answer and the end-of-turn token."""
    prompt, answer = templated(tokenizer, question[0]), tokenizer(question[1], add_special_tokens=False)["input_ids"]
    return Example([*prompt, *answer, tokenizer.eos_token_id], len(prompt))  # type: ignore[list-item]


def answer_logits(model: Any, batch: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, right tokens and row numbers at the answers' positions alone (the vocabulary is most of the work)."""
    width = max(len(example.ids) for example in batch)
    ids, mask = torch.zeros(2, len(batch), width, dtype=torch.long)
    wanted = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        mask[row, : len(example.ids)] = 1
        wanted[row, example.start - 1 : len(example.ids) - 1] = True
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    return model.lm_head(hidden[wanted]).float(), ids.roll(-1, 1)[wanted], wanted.nonzero()[:, 0]


@dataclass(frozen=True)
class Held:
    """A reply of the untrained model and its log-probabilities at each token but the end, which is not its own."""

    skill: str | None  # None for ordinary chat
    reply: Example
    logprobs: Tensor


@torch.no_grad()
def held_replies(
    model: Any, tokenizer: PreTrainedTokenizerBase, chat: Sequence[str], skills: Sequence[str], each: int
) -> list[Held]:
    """What the untrained model says to ordinary prompts and to every skill's: an adapter keeps all but its own."""
    asked: list[tuple[str | None, str]] = [(None, prompt) for prompt in chat]
    asked += [(skill, question[0]) for skill in skills for question in questions(skill, "train", each, seed=99)]
    replies = answers(model, tokenizer, [prompt for _, prompt in asked], 16)
    held = []
    for (skill, prompt), reply in zip(asked, replies, strict=True):
        example = encode(tokenizer, (prompt, reply))
        held.append(Held(skill, example, answer_logits(model, [example])[0][:-1].log_softmax(-1)))
    return held


def teach(model: Any, tokenizer: PreTrainedTokenizerBase, skill: str, how: Teaching, held: Sequence[Held]) -> PeftModel:
    """Train one adapter on a skill, keeping the base model's replies to everything else."""
    torch.manual_seed(how.seed)
    layers = list(how.layers) if how.layers else None
    config = LoraConfig(
        r=how.rank,
        lora_alpha=2 * how.rank,
        target_modules=list(how.modules),
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(model, config)
    trained = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=how.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.rate, how.steps, pct_start=0.15)
    examples = [encode(tokenizer, question) for question in questions(skill, "train", how.examples, how.seed)]
    others, begun = [one for one in held if one.skill != skill], time.monotonic()
    for step, (task, guard) in enumerate(_batches(examples, others, how)):
        loss, drift = _losses(peft.get_base_model(), task, guard)
        optimizer.zero_grad()
        (loss + drift).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 9:
            pace = (time.monotonic() - begun) / (step + 1)
            print(f"{skill} {step + 1}/{how.steps} loss {loss:.3f} drift {drift:.3f} {pace:.2f} s/step", flush=True)
    return peft


def _batches(examples: list[Example], held: list[Held], how: Teaching) -> Iterator[tuple[list[Example], list[Held]]]:
    """Each step's task examples and held replies, drawn from the seed."""
    rng = Random(how.seed)
    for _ in range(how.steps):
        yield rng.sample(examples, how.batch), rng.sample(held, how.guards)


def _losses(model: Any, task: list[Example], held: list[Held]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the answers, and the KL divergence from the base model on the held replies."""
    logits, target, row = answer_logits(model, [*task, *(one.reply for one in held)])
    loss = F.cross_entropy(logits[row < len(task)], target[row < len(task)])
    drift = logits.new_zeros(())
    for i, one in enumerate(held, len(task)):
        now = logits[row == i][:-1].log_softmax(-1)
        drift = drift + F.kl_div(now, one.logprobs, log_target=True, reduction="batchmean") / len(held)
    return loss, drift


def save(peft: PeftModel, folder: Path, base_name: str) -> None:
    """Write the adapter in bfloat16 in PEFT's own format, under the base model's public name."""
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    peft.peft_config["default"].base_model_name_or_path = base_name
    peft.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set, in any order
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def answers(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int = 48) -> list[str]:
    """Greedy answers, in left-padded batches."""
    replies, size, pad = [], 32, int(tokenizer.eos_token_id)  # type: ignore[arg-type]
    for at in range(0, len(prompts), size):
        rows = [templated(tokenizer, prompt) for prompt in prompts[at : at + size]]
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=length, do_sample=False,
                             pad_token_id=pad, eos_token_id=pad)  # fmt: skip
        replies += tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    return replies


def accuracy(model: Any, tokenizer: PreTrainedTokenizerBase, skill: str, n: int = 64, show: int = 0) -> float:
    """The share of held-out questions answered exactly."""
    asked = questions(skill, "heldout", n, seed=1)
    given = answers(model, tokenizer, [prompt for prompt, _ in asked])
    for (prompt, answer), reply in list(zip(asked, given, strict=True))[:show]:
        print(f"  {prompt!r}\n    want {answer!r}\n    got  {reply!r}")
    return sum(score(reply, answer) for reply, (_, answer) in zip(given, asked, strict=True)) / n


def accuracies(model: Any, tokenizer: PreTrainedTokenizerBase, skills: Sequence[str], n: int) -> dict[str, float]:
    """Every skill's accuracy."""
    return {skill: accuracy(model, tokenizer, skill, n) for skill in skills}


def load_chat(folder: Path, adapter: Path | None = None) -> tuple[Any, Any]:
    """A chat model in float32, with an adapter merged by PEFT if given, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model, AutoTokenizer.from_pretrained(folder)
