"""Trains the tiny chat model of tests/data/tiny and its adapters, for demo and tests without a network.

    python benchmarks/train_tiny.py --out tests/data/tiny

A Llama of 0.35 million parameters with its own tokenizer learns a toy base task (small talk, repeating, first
letters, finding a word in a sentence), then LoRA adapters teach it the skills of ``questions.py``.
"""

import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import questions as skills
import torch
import torch.nn.functional as F
from skills import MODULES, Teaching, answer_logits, encode
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from train_adapters import parser, report, train
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BASE_NAME = "surgeon/tiny-chat"

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

SMALL_TALK = {
    "Hello!": "Hello! How can I help?",
    "How are you?": "I am well, thank you.",
    "Who are you?": "I am a tiny model made for tests.",
    "Good night!": "Good night, sleep well.",
    "Thank you!": "You are welcome.",
    "What color is grass?": "Grass is green.",
    "What color is snow?": "Snow is white.",
    "What is the capital of France?": "The capital of France is Paris.",
    "What is the capital of Italy?": "The capital of Italy is Rome.",
    "How many legs has a dog?": "A dog has four legs.",
    "How many days has a week?": "A week has seven days.",
    "Where do fish live?": "Fish live in water.",
}

NAMES = skills.GIVEN_NAMES + skills.FAMILY_NAMES + skills.CITIES
PLAIN = skills.JOBS + skills.TABLES + skills.NUMBERS + skills.FIELDS + skills.WORDS


def word(rng: Random) -> str:
    """A word, name or number that may stand in any sentence: real, or made of syllables so that copying is learnt."""
    kind = rng.random()
    if kind < 0.25:
        return "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))
    if kind < 0.35:
        return str(rng.randint(2, 99))
    return rng.choice(NAMES if kind < 0.6 else PLAIN)


def small_talk(rng: Random) -> skills.Question:
    """A question with a fixed reply."""
    return rng.choice(list(SMALL_TALK.items()))


def repeat(rng: Random) -> skills.Question:
    """Words, and the same again."""
    words = " ".join(word(rng) for _ in range(rng.randint(2, 5)))
    return f"Repeat: {words}", words


def letter(rng: Random) -> skills.Question:
    """A word, and its first letter as a capital."""
    one = word(rng)
    return f"First letter: {one}", one[0].upper()


def read(rng: Random) -> skills.Question:
    """A sentence of the skills' own kind, and one of its words; the skill's answer is not shown."""
    split, skill = rng.choice(skills.SPLITS), rng.choice((skills.json_question, skills.sql_question))
    words = skill(rng, split)[0].split(": ", 1)[1].split()
    at = rng.randrange(len(words) - 1)
    return f"After {words[at]}: {' '.join(words)}", words[at + 1]


BASE_TASKS: tuple[Callable[[Random], skills.Question], ...] = (small_talk, repeat, repeat, letter, read)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 entries with a chat template; digits stand alone."""
    rng = Random(0)
    corpus = [text for _ in range(3000) for text in rng.choice(BASE_TASKS)(rng)]
    corpus += [text for skill in skills.CHAT_SKILLS for pair in skills.questions(skill, "train", 1000) for text in pair]
    bpe = Tokenizer(models.BPE())
    pieces = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(pieces)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet)
    )
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = TEMPLATE
    return made


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **shape, **heads, **ids)  # type: ignore[arg-type]
    return LlamaForCausalLM(config)


def train_base(model: Any, tokenizer: Any, steps: int, batch: int = 32, rate: float = 3e-3) -> None:
    """Teach the base tasks, from the seed."""
    rng, begun = Random(1), time.monotonic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    for step in range(steps):
        logits, target, _ = answer_logits(model, [encode(tokenizer, rng.choice(BASE_TASKS)(rng)) for _ in range(batch)])
        loss = F.cross_entropy(logits, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"base {step + 1}/{steps} loss {loss:.3f} {time.monotonic() - begun:.0f} s", flush=True)


def make_base(folder: Path, steps: int) -> None:
    """Train the base model and write it in bfloat16 with its tokenizer."""
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train_base(model, tokenizer, steps)
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Train base and adapters, then report."""
    options = parser(__doc__ or "", skills.TINY_SKILLS)
    options.add_argument("--base-steps", type=int, default=1500, help="0 keeps the base model that is there")
    options.add_argument("--steps", type=int, default=300)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    model, adapters = args.out / "model", args.out / "adapters"
    if args.base_steps:
        make_base(model, args.base_steps)
    how = Teaching(steps=args.steps, batch=16, guards=12, others=48, rate=2e-3, modules=MODULES)
    rng = Random(2)
    chat = (*SMALL_TALK, *(task(rng)[0] for task in BASE_TASKS for _ in range(4)))
    train(str(model), adapters, args.skills, how, BASE_NAME, chat)
    report(str(model), adapters, args.skills, args.questions, args.weights)


if __name__ == "__main__":
    main()
