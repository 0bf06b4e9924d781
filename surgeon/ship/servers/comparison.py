"""What a server answered, held against transformers on the same folder in float32.

transformers is asked about the server's own tokens, all of an answer in one forward pass: how likely each is, and
whether another would have been likelier. A token whose lead is within the noise of both is a tie, and no difference.
In 16 bit the noise is a model's own: transformers itself is run in that dtype too, and thrice what it differs by from
float32 is allowed, where that is more than the usual.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from surgeon.errors import CheckpointError, RefusedError
from surgeon.runtime.load import load_model, load_tokenizer
from surgeon.ship.servers.engines import Prompt, Served

#: What log-probabilities of one model differ by between implementations, by the dtype it is computed in.
TOLERANCES = {"float32": 0.02, "bfloat16": 0.05, "float16": 0.05}

#: What others round that transformers does not, as a multiple of its own noise: mlx takes log-softmax in 16 bit too.
_OTHERS = 3

#: Plain text and code; the last goes through the chat template, where there is one.
TEXTS = ("The capital of France is", "Once upon a time there was a", "def add(a, b):")
MESSAGE = "Name three colours."


@dataclass(frozen=True)
class Compared:
    """One prompt: how many tokens were compared, the largest |Δ log p| (None: none told), what is wrong ('')."""

    prompt: str
    tokens: int
    apart: float | None
    wrong: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


class Reference:
    """A folder as transformers loads it: its tokenizer at once, the model when it is first asked.

    `dtype` is what the server computes in.
    """

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        self._folder, self._dtype = folder, dtype
        self.tokenizer = load_tokenizer(folder)
        if self.tokenizer is None:
            hint = "put tokenizer.json and tokenizer_config.json beside the weights"
            raise CheckpointError(f"{folder} has no tokenizer, so there is nothing to ask", hint=hint)

    @cached_property
    def model(self) -> Any:
        """The model in float32. CheckpointError where transformers refuses it."""
        return load_model(self._folder, "float32").eval()

    @cached_property
    def served_model(self) -> Any:
        """The model in the dtype the server computes in."""
        same = self._dtype not in TOLERANCES or self._dtype == "float32"
        return self.model if same else load_model(self._folder, self._dtype).eval()

    def prompts(self) -> list[Prompt]:
        """The prompts that are asked, with their ids."""
        texts = list(TEXTS)
        if getattr(self.tokenizer, "chat_template", None):
            chat = [{"role": "user", "content": MESSAGE}]
            texts.append(self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
        return [Prompt(text, tuple(self.tokenizer(text).input_ids)) for text in texts]

    def tolerance(self, served: Sequence[Served]) -> float:
        """The largest |Δ log p| that is noise: the usual, or thrice transformers' own in 16 bit on these answers."""
        usual = TOLERANCES.get(self._dtype, TOLERANCES["bfloat16"])
        told = [one for one in served if one.ids and one.logprobs]
        if self.served_model is self.model:
            return usual
        return max([usual, *(_OTHERS * self._noise(one) for one in told)])

    def _noise(self, served: Served) -> float:
        ids = torch.tensor(served.ids)[:, None]
        models = self.model, self.served_model
        one, other = (self._table(served, model)[: len(ids)].gather(1, ids) for model in models)
        return float((one - other).abs().max())

    def compare(self, served: Iterable[Served], count: int, tolerance: float) -> list[Compared]:
        """Every answer, judged; `count` is how many tokens were asked for."""
        return [self._compared(answer, count, tolerance) for answer in served]

    def _compared(self, served: Served, count: int, tolerance: float) -> Compared:
        text, ids = served.prompt.text, served.ids
        if served.read is not None and served.read != len(served.prompt.ids):
            wrong = f"reads the prompt as {served.read} tokens, the folder's tokenizer as {len(served.prompt.ids)}"
            return Compared(text, 0, None, wrong)
        if ids is None:
            greedy = self._greedy(served.prompt.ids, count)
            expected = self.tokenizer.decode(greedy, skip_special_tokens=True)
            same = served.text == expected
            return Compared(text, len(greedy), None, "" if same else f"says {served.text!r}, transformers {expected!r}")
        if not ids:
            done = served.ended and self._ends(self._table(served)[-1])
            return Compared(text, 0, None, "" if done else "says nothing")
        return self._judged(served, ids, count, tolerance)

    def _judged(self, served: Served, ids: Sequence[int], count: int, tolerance: float) -> Compared:
        table = self._table(served)
        theirs = table[: len(ids)].gather(1, torch.tensor(ids)[:, None])[:, 0]
        leads = table[: len(ids)].amax(1) - theirs
        apart = None if served.logprobs is None else float((torch.tensor(served.logprobs) - theirs).abs().max())
        wrong = ""
        if apart is not None and not apart <= tolerance:
            wrong = f"log-probabilities differ by {apart:.3g}"
        if served.ended and len(ids) < count and ids[-1] not in self._end_ids and not self._ends(table[len(ids)]):
            wrong = f"stops after {len(ids)} tokens, where transformers goes on"
        if (behind := leads > 2 * tolerance).any():
            at = int(behind.nonzero()[0])
            mine, other = (self.tokenizer.decode([token]) for token in (ids[at], int(table[at].argmax())))
            wrong = f"token {at + 1} is {mine!r}, transformers prefers {other!r} by {float(leads[at]):.2g}"
        return Compared(served.prompt.text, len(ids), apart, wrong)

    @torch.inference_mode()
    def _table(self, served: Served, model: Any = None) -> torch.Tensor:
        """log p of what follows the prompt and each token of the answer, float32 [tokens + 1, vocab].

        By the model in float32, unless another is given.
        """
        start = len(served.prompt.ids)
        row = torch.tensor([[*served.prompt.ids, *(served.ids or ())]])
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit and row.shape[1] > limit:
            found = f"{row.shape[1]} tokens do not fit the model's context of {limit}"
            raise RefusedError(found, hint="ask for fewer: --tokens N")
        return (model or self.model)(row).logits[0, start - 1 :].float().log_softmax(-1)

    def _greedy(self, ids: Sequence[int], count: int) -> list[int]:
        row = torch.tensor([ids])
        found = self.served_model.generate(
            row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=count
        )
        return found[0, len(ids) :].tolist()

    def _ends(self, row: torch.Tensor) -> bool:
        return int(row.argmax()) in self._end_ids

    @property
    def _end_ids(self) -> frozenset[int]:
        found = self.model.generation_config.eos_token_id
        return frozenset([found] if isinstance(found, int) else found or ())
