"""What a config.json says of single layers: how many there are, lists with an entry a layer, rules by layer number.

Servers read the kind of a layer (its attention window, its rope, whether it is a mixture of experts) from the config,
by the layer's number there. Layers that get other numbers need another config. The rules are declared, never guessed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from surgeon.anatomy.stacks import COUNTS, Stack
from surgeon.errors import MismatchError

#: Sections that hold the text model's config in a multimodal one.
_TEXT = ("text_config", "llm_config", "language_config")
#: Ends of the names of lists that are about something else, whatever their length.
_NO_LAYERS = ("architectures", "token_id", "token_ids", "_section", "labels", "multipliers")
#: Keys that tell layers apart by rules that are not written anew here; such layers keep their numbers.
_FIXED = (
    "attn_layer_period", "expert_layer_period", "attention_types", "num_kv_shared_layers", "num_nextn_predict_layers",
    "moe_layer_start_index", "moe_layer_interval", "full_attention_interval", "scale_attn_by_inverse_layer_idx",
)  # fmt: skip

Section = Mapping[str, Any]


@dataclass(frozen=True)
class Depth:
    """A config's section about one stack: its key ("" for the top), its entries, and the keys that count its layers."""

    key: str
    section: Section
    counts: tuple[str, ...]

    @property
    def layers(self) -> int | None:
        """How many layers the config says there are; None where it does not."""
        return int(self.section[self.counts[0]]) if self.counts else None


def depth_of(config: Section, stack: Stack) -> Depth:
    """The section of a config that counts a stack's layers; without counts where it says nothing of them."""
    sections = [("", config), *((key, config[key]) for key in _TEXT if isinstance(config.get(key), Mapping))]
    for known in (stack.counts, COUNTS):
        for key, section in sections:
            if counts := tuple(name for name in known if isinstance(section.get(name), int)):
                return Depth(key, section, counts)
    return Depth("", config, ())


def per_layer(section: Section, layers: int) -> dict[str, Sequence[Any]]:
    """What a section says of each of its layers, by the key that lists it, or would."""
    listed = {key: value for key, value in section.items() if isinstance(value, list) and len(value) == layers}
    numbers = {rule.key for rule in _RULES if not rule.lists}
    found: dict[str, Sequence[Any]] = {
        key: value for key, value in listed.items() if key not in numbers and not key.endswith(_NO_LAYERS)
    }
    for rule in _RULES:
        if rule.key not in found and (values := rule.read(section, layers)) is not None:
            found[rule.key] = values
    return found


def with_layers(section: Section, values: Mapping[str, Sequence[Any]], layers: int) -> dict[str, Any]:
    """The entries of a section that say this of each layer. MismatchError where the config has no way to say it."""
    rules = {rule.key: rule for rule in _RULES}
    changes: dict[str, Any] = {}
    for key, each in values.items():
        changes |= rules[key].write(section, each) if key in rules else {key: list(each)}
    again = per_layer({**section, **changes}, layers)
    wrong = [key for key, each in values.items() if list(again.get(key, ())) != list(each)]
    if wrong:
        raise MismatchError(
            f"config.json's {', '.join(wrong)} cannot say of these layers, in this order, what it says of them now",
            hint="take the layers in another order",
        )
    if isinstance(full := section.get("max_window_layers"), int):
        changes["max_window_layers"] = min(full, layers)
    return changes


def fixed(section: Section) -> tuple[str, ...]:
    """The keys that tell layers apart by their numbers in a way that cannot be written for other numbers."""
    period = section.get("moe_layer_freq")
    found = [key for key in _FIXED if section.get(key)]
    return (*found, *(["moe_layer_freq"] if isinstance(period, int) and period > 1 else []))


class _Rule(ABC):
    """A fact of each layer: read from what tells it, written under `key`; `lists` where that holds one entry each."""

    key: str
    lists = True

    @abstractmethod
    def read(self, section: Section, layers: int) -> Sequence[Any] | None:
        """The fact of each layer, or None where the section has no such rule."""

    def write(self, section: Section, values: Sequence[Any]) -> dict[str, Any]:
        """The entries that say it."""
        return {self.key: list(values)}


class _Types(_Rule):
    """The kind of attention, where layers take turns or the later ones have a window."""

    key = "layer_types"
    _turns: ClassVar = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}

    @override
    def read(self, section: Section, layers: int) -> Sequence[Any] | None:
        keys = ("sliding_window_pattern", "_sliding_window_pattern")
        turn = next((section[key] for key in keys if section.get(key)), self._turns.get(str(section.get("model_type"))))
        if turn:
            return ["sliding_attention" if (i + 1) % turn else "full_attention" for i in range(layers)]
        if section.get("use_sliding_window") and isinstance(full := section.get("max_window_layers"), int):
            return ["full_attention" if i < full else "sliding_attention" for i in range(layers)]
        return None


class _NoRope(_Rule):
    """Whether a layer has rotary positions: all but every so-manieth."""

    key = "no_rope_layers"

    @override
    def read(self, section: Section, layers: int) -> Sequence[Any] | None:
        default = 4 if section.get("model_type") in ("smollm3", "llama4_text") else None
        interval = section.get("no_rope_layer_interval") or default
        return [int((i + 1) % interval != 0) for i in range(layers)] if interval else None


class _Sparse(_Rule):
    """Which layers are mixtures of experts, as Qwen's configs say it."""

    key = "mlp_only_layers"
    lists = False

    @override
    def read(self, section: Section, layers: int) -> Sequence[Any] | None:
        if "decoder_sparse_step" not in section and self.key not in section:
            return None
        step, dense = section.get("decoder_sparse_step") or 1, section.get(self.key) or []
        return [i not in dense and (i + 1) % step == 0 for i in range(layers)]

    @override
    def write(self, section: Section, values: Sequence[Any]) -> dict[str, Any]:
        return {self.key: [i for i, sparse in enumerate(values) if not sparse], "decoder_sparse_step": 1}


@dataclass(frozen=True)
class _Numbers(_Rule):
    """A list of the numbers of layers; where there is none, every `step`-th."""

    key: str
    step: str = ""
    lists = False

    @override
    def read(self, section: Section, layers: int) -> Sequence[Any] | None:
        if isinstance(numbers := section.get(self.key), list):
            return [i in numbers for i in range(layers)]
        return [(i + 1) % section[self.step] == 0 for i in range(layers)] if section.get(self.step) else None

    @override
    def write(self, section: Section, values: Sequence[Any]) -> dict[str, Any]:
        return {self.key: [i for i, held in enumerate(values) if held]}


@dataclass(frozen=True)
class _First(_Rule):
    """A number of first layers that are of one kind, the later ones of another."""

    key: str
    lists = False

    @override
    def read(self, section: Section, layers: int) -> Sequence[Any] | None:
        count = section.get(self.key)
        return [i < count for i in range(layers)] if isinstance(count, int) else None

    @override
    def write(self, section: Section, values: Sequence[Any]) -> dict[str, Any]:
        return {self.key: next((i for i, held in enumerate(values) if not held), len(values))}


_RULES: tuple[_Rule, ...] = (
    _Types(), _NoRope(), _Sparse(), _Numbers("moe_layers", "interleave_moe_layer_step"), _Numbers("attn_layer_indices"),
    _First("first_k_dense_replace"),
)  # fmt: skip
