"""Vocab: a model's embedding, head and whatever else tokens index, brought to another vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from surgeon.anatomy.special_ids import with_special_ids, with_vocab_size
from surgeon.anatomy.token_rows import Joining, Owner
from surgeon.anatomy.tokenizer_files import extended
from surgeon.anatomy.vocabulary import SPELLINGS, Tokenizer, belongs_to_tokenizer, union, vocabulary_tensors
from surgeon.errors import MismatchError
from surgeon.space.parameters import Parameter, Range
from surgeon.space.parts import PartNumber, TokenSources, base_of
from surgeon.space.reshape import Drawn, Operand, Reshaping, Rows
from surgeon.space.sides import Content, json_bytes

_UNION = "union"


class Vocab(Reshaping):
    """Brings a model to the vocabulary of several: rows by token, the tokenizer's files and the config with them.

    `with` lists the models whose tokens count, in order (`of` comes first where it is not among them); the first is the
    base. `tokenizer` is union (the base's tokens in their places, then the others'), base, or one of the models. A
    token that `of` lacks takes the base's row, else the mean of its owners' (with `missing: mean` always that), else
    zero; `tokens` says otherwise for single ones. The rows that `pad_to_multiple_of` adds are the mean of all others.
    """

    name = "vocab"
    operands = ("of", "with")
    parameters: ClassVar[Mapping[str, Parameter]] = {
        "tokenizer": Parameter("tokenizer", "tokenizer", PartNumber, False, _UNION, (_UNION,)),
        "missing": Parameter("missing", "missing", str, False, "base", ("base", "mean")),
        "tokens": Parameter("tokens", "tokens", TokenSources, False, None),
        "pad_to_multiple_of": Parameter(
            "pad_to_multiple_of", "pad_to_multiple_of", int, False, 1, (), Range("[1, inf)")
        ),
    }

    def tensors(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Mapping[str, Drawn]:
        """The model's tensors; what tokens index has a row a token of the new vocabulary."""
        joined, model = _Joined(tuple(operands), settings), operands[0]
        kept = {name: Drawn(spec, ((0, name),)) for name, spec in model.table.items()}
        return {**kept, **joined.drawn(kept)}

    def config(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """vocab_size, and the ids of special tokens where the tokenizer is another model's."""
        joined, model = _Joined(tuple(operands), settings), operands[0]
        sized = with_vocab_size(model.config, joined.size + joined.padding)
        giver = joined.giver
        return with_special_ids(sized, giver.config, model.sides.tokenizer.ids, giver.sides.tokenizer.ids)

    def files(self, operands: Sequence[Operand], settings: Mapping[str, Any]) -> Mapping[str, Content | None]:
        """The tokenizer's files: those of the model it is from, edited where tokens are added."""
        joined, model = _Joined(tuple(operands), settings), operands[0]
        giver = joined.giver.sides
        found: dict[str, Content | None] = {name: None for name in model.sides.files if belongs_to_tokenizer(name)}
        found |= {name: content for name, content in giver.files.items() if belongs_to_tokenizer(name)}
        if joined.ids.keys() > giver.tokenizer.ids.keys():
            longer = extended(giver.tokenizer, joined.tokenizers, joined.ids)
            found |= dict.fromkeys(name for name in SPELLINGS if name in found)
            found["tokenizer.json"] = json_bytes(longer.data)
            if longer.config != giver.tokenizer.config:
                found["tokenizer_config.json"] = json_bytes(longer.config)
        generation = model.sides.json("generation_config.json")
        about = giver.json("generation_config.json"), model.sides.tokenizer.ids, giver.tokenizer.ids
        if generation and (changed := with_special_ids(generation, *about)) != generation:
            found["generation_config.json"] = json_bytes(changed)
        return {name: content for name, content in found.items() if model.sides.files.get(name) != content}


@dataclass(frozen=True, eq=False)
class _Joined:
    """The models of a reshape and the vocabulary they are brought to."""

    operands: tuple[Operand, ...]
    settings: Mapping[str, Any]

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The numbers of the models, each once; the base first."""
        numbers = [one.number for one in self.operands]
        return tuple(dict.fromkeys((base_of(numbers), *numbers[1:], 0)))

    @property
    def models(self) -> list[Operand]:
        """The models in that order."""
        return [self.operands[number] for number in self.order]

    @property
    def tokenizers(self) -> list[Tokenizer]:
        """Their tokenizers."""
        return [model.sides.tokenizer for model in self.models]

    @cached_property
    def giver(self) -> Operand:
        """The model whose tokenizer is taken, or added to."""
        chosen = self.settings.get("tokenizer", _UNION)
        return self.operands[chosen.number if isinstance(chosen, PartNumber) else self.order[0]]

    @cached_property
    def sources(self) -> TokenSources:
        """What is said of single tokens."""
        return self.settings.get("tokens") or TokenSources(())

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The row of every token."""
        whole = not isinstance(self.settings.get("tokenizer"), PartNumber)
        joined = self.tokenizers if whole else [self.giver.sides.tokenizer]
        return union(joined, (source.token for source in self.sources.sources))

    @property
    def size(self) -> int:
        """The rows that tokens have."""
        return 1 + max(self.ids.values(), default=-1)

    @property
    def padding(self) -> int:
        """The rows added to them."""
        return -self.size % int(self.settings.get("pad_to_multiple_of", 1))

    def drawn(self, kept: Mapping[str, Drawn]) -> dict[str, Drawn]:
        """What each tensor that tokens index is made of. MismatchError for models that do not fit together."""
        first = self.operands[0]
        names = vocabulary_tensors(first.table)
        if not names:
            hint = "an architecture's names are one line: NAMES in surgeon/anatomy/vocabulary.py"
            raise MismatchError(f"{first.label} has no tensor that is known to have a row a token", hint=hint)
        self._check(names)
        rows = self._rows(names[0])
        used = [number for number in range(len(rows)) if (rows[number] >= 0).any()] or [self.order.index(0)]
        same = np.array_equal(rows[self.order.index(0)], np.arange(self.size)) and len(used) == 1 and not self.padding
        found = {}
        for name in names:
            shape, dtype = first.table[name].shape, first.table[name].dtype
            if same and shape[0] == self.size:
                continue
            spec = type(first.table[name])(dtype, (self.size + self.padding, *shape[1:]))
            inputs = tuple((self.order[number], name) for number in used)
            found[name] = Drawn(spec, inputs, rows=tuple(Rows(rows[number]) for number in used), padding=self.padding)
        return found

    def _rows(self, name: str) -> list[np.ndarray]:
        owners = [Owner(one.label, one.sides.tokenizer.ids, one.table[name].shape[0]) for one in self.models]
        number = {part: place for place, part in enumerate(self.order)}
        sources = {one.token: one if one.part is None else one.at(number[one.part]) for one in self.sources.sources}
        base = None if self.settings.get("missing") == "mean" else 0
        return Joining(owners, self.ids, self.size, number[0], base, number[self.giver.number], sources).rows()

    def _check(self, names: Sequence[str]) -> None:
        first, faults = self.operands[0], []
        for model in self.models:
            rows = {model.table[name].shape[0] for name in names if name in model.table}
            if len(rows) > 1:
                faults.append(
                    f"{model.label}: {', '.join(f'{name} {model.table[name]}' for name in names)}: rows differ"
                )
            for name in names:
                if name not in model.table:
                    faults.append(f"{name}: {first.label} has it, {model.label} does not")
                elif model.table[name].shape[1:] != first.table[name].shape[1:]:
                    faults.append(f"{name}: {first.table[name]} in {first.label}, {model.table[name]} in {model.label}")
        if faults:
            listed = "\n    ".join(faults)
            hint = "models of one architecture and width share a vocabulary; a tied one gets a head by reshape: untie"
            raise MismatchError(f"these vocabularies cannot be joined:\n    {listed}", hint=hint)
