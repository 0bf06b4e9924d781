"""Which layer a tensor belongs to: declared stack prefixes, with what stands before and after each stack."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Position:
    """Where a tensor stands: in layer `index` of `count`, or before or after the stack."""

    place: Literal["before", "layer", "after"]
    index: int
    count: int

    @property
    def fraction(self) -> tuple[int, int]:
        """The place along the stack as a ratio: 0 for the first layer and before, 1 for the last and after."""
        last = max(self.count - 1, 1)
        index = {"before": 0, "layer": self.index, "after": last}[self.place]
        return index, last


#: Keys of config.json that count the layers of a model with one stack.
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class Stack:
    """A run of numbered layers: its prefix, the names (prefixes too) of what stands around it, the config's count."""

    prefix: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    counts: tuple[str, ...] = COUNTS


#: The layouts known. A prefix holds no digit: it ends where the layer's number begins.
STACKS = (
    Stack("model.layers.", ("model.embed_tokens.",), ("model.norm.", "lm_head.", "score.")),
    Stack(
        "language_model.model.layers.",
        ("language_model.model.embed_tokens.",),
        ("language_model.model.norm.", "language_model.lm_head."),
    ),
    Stack(
        "model.language_model.layers.",
        ("model.language_model.embed_tokens.",),
        ("model.language_model.norm.", "lm_head."),
    ),
    Stack(
        "model.decoder.layers.",
        ("model.decoder.embed",),
        ("model.decoder.final_layer_norm.", "model.decoder.layer_norm.", "proj_out.", "lm_head."),
        ("decoder_layers",),
    ),
    Stack(
        "model.encoder.layers.",
        ("model.encoder.embed", "model.encoder.conv"),
        ("model.encoder.layer_norm.",),
        ("encoder_layers",),
    ),
    Stack(
        "transformer.h.",
        ("transformer.wte.", "transformer.wpe.", "transformer.word_embeddings"),
        ("transformer.ln_f.", "lm_head."),
    ),
    Stack("h.", ("wte.", "wpe.", "word_embeddings"), ("ln_f.", "lm_head.")),
    Stack("transformer.blocks.", ("transformer.wte.", "transformer.wpe."), ("transformer.norm_f.", "lm_head.")),
    Stack("gpt_neox.layers.", ("gpt_neox.embed_in.",), ("gpt_neox.final_layer_norm.", "embed_out.")),
    Stack("backbone.layers.", ("backbone.embeddings.", "backbone.embedding."), ("backbone.norm_f.", "lm_head.")),
    Stack("layers.", ("embed_tokens.", "embeddings."), ("norm.",)),
    Stack("encoder.block.", ("shared.", "encoder.embed_tokens."), ("encoder.final_layer_norm.",), ("num_layers",)),
    Stack(
        "decoder.block.",
        ("decoder.embed_tokens.",),
        ("decoder.final_layer_norm.", "lm_head."),
        ("num_decoder_layers",),
    ),
    Stack("bert.encoder.layer.", ("bert.embeddings.",), ("bert.pooler.", "cls.", "classifier.")),
    Stack("roberta.encoder.layer.", ("roberta.embeddings.",), ("lm_head.", "classifier.")),
    Stack("encoder.layer.", ("embeddings.",), ("pooler.", "layernorm.")),
    Stack("vit.encoder.layer.", ("vit.embeddings.",), ("vit.layernorm.", "vit.pooler.", "classifier.")),
)

_BY_PREFIX = {stack.prefix: stack for stack in STACKS}
_LAYER = re.compile(r"(\D*?)(\d+)\.")


def in_stack(name: str) -> tuple[Stack, int, str] | None:
    """The stack a tensor lies in, the number of its layer, and its name inside the layer."""
    found = _LAYER.match(name)
    stack = _BY_PREFIX.get(found[1]) if found is not None else None
    return (stack, int(found[2]), name[found.end() :]) if found is not None and stack is not None else None


def positions(names: Iterable[str]) -> Mapping[str, Position]:
    """The position of every tensor whose layout is declared in `STACKS`; a name missing here is unknown."""
    names = tuple(names)
    layer_of: dict[str, tuple[Stack, int]] = {}
    counts: dict[Stack, int] = {}
    for name in names:
        if numbered := in_stack(name):
            stack, number, _ = numbered
            layer_of[name] = stack, number
            counts[stack] = max(counts.get(stack, 0), number + 1)
    found = {name: Position("layer", index, counts[stack]) for name, (stack, index) in layer_of.items()}
    for name in names:
        if name not in found and (around := _around(name, counts)):
            found[name] = around
    return found


def _around(name: str, counts: Mapping[Stack, int]) -> Position | None:
    """The position of a tensor outside all stacks that are there."""
    for stack, count in counts.items():
        if name.startswith(stack.before):
            return Position("before", 0, count)
        if name.startswith(stack.after):
            return Position("after", count - 1, count)
    return None
