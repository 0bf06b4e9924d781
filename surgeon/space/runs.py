"""Runs of layers of models: which are taken, which tensors they hold, whether the runs fit on top of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from surgeon.anatomy.depth import Depth, depth_of, fixed, per_layer
from surgeon.anatomy.stacks import Stack, in_stack
from surgeon.errors import MismatchError, RefusedError, nearest
from surgeon.space.reshape import Operand

#: Entries of a config that every layer is computed by, and that no shape tells.
_SAME = (
    "model_type", "hidden_size", "n_embd", "num_attention_heads", "n_head", "num_key_value_heads", "head_dim",
    "hidden_act", "hidden_activation", "activation_function", "num_experts_per_tok",
)  # fmt: skip
#: Entries that change nothing in a layer.
_ASIDE = (
    "_name_or_path", "architectures", "torch_dtype", "dtype", "transformers_version", "use_cache", "vocab_size",
    "bos_token_id", "eos_token_id", "pad_token_id", "max_window_layers",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """The layers taken of one part: its stack, the tensors of each layer as (name inside it, name)."""

    part: Operand
    stack: Stack
    held: Mapping[int, Sequence[tuple[str, str]]]

    @property
    def layers(self) -> range:
        """The numbers of the layers taken."""
        return range(*(self.part.layers or (0, len(self.held))))

    @cached_property
    def depth(self) -> Depth:
        """What the config says of the stack."""
        return depth_of(self.part.config, self.stack)

    @cached_property
    def said(self) -> Mapping[str, Sequence[Any]]:
        """What the config says of each layer."""
        return per_layer(self.depth.section, len(self.held)) if self.depth.counts else {}

    def around(self, *, after: bool) -> list[str]:
        """The tensors behind the layers (final norm, head), or all others that are in none of them."""
        outside = [name for name in self.part.table if (found := in_stack(name)) is None or found[0] != self.stack]
        return [name for name in outside if name.startswith(self.stack.after) == after]


def runs_of(parts: Sequence[Operand], prefix: str) -> list[Run]:
    """The runs of the parts; `prefix` chooses the stack where a model has several. RefusedError, MismatchError."""
    runs = [_run(part, prefix) for part in parts]
    if len({run.stack for run in runs}) > 1:
        named = ", ".join(f"{run.stack.prefix} in {run.part.label}" for run in runs)
        raise MismatchError(f"the layers of the parts are called differently: {named}")
    return runs


def _run(part: Operand, prefix: str) -> Run:
    stacks: dict[Stack, dict[int, list[tuple[str, str]]]] = {}
    for name in part.table:
        if found := in_stack(name):
            stacks.setdefault(found[0], {}).setdefault(found[1], []).append((found[2], name))
    known = {stack.prefix: stack for stack in stacks}
    if not known:
        raise MismatchError(f"{part.label}: no declared layout tells which of its tensors are numbered layers")
    if prefix not in known and (prefix or len(known) > 1):
        message = f"has no layers called {prefix}0" if prefix else f"has several stacks: {', '.join(known)}"
        raise RefusedError(f"{part.label} {message}", hint=nearest(prefix, known) if prefix else "say which: prefix: …")
    stack = known[prefix] if prefix else next(iter(known.values()))
    run = Run(part, stack, stacks[stack])
    _check_numbers(run)
    return run


def _check_numbers(run: Run) -> None:
    """The range lies in the model; no layer is missing; the config counts as many."""
    label, count, said = run.part.label, len(run.held), run.depth.layers
    if said is not None and said != count:
        where = f"{run.stack.prefix}*"
        raise MismatchError(
            f"{label} has {count} layers {where}, and its config.json says {run.depth.counts[0]}: {said}"
        )
    if missing := set(range(max(run.held) + 1)) - run.held.keys():
        raise MismatchError(f"{label} has no layer {min(missing)}, though one {max(run.held)}")
    first, end = run.layers.start, run.layers.stop
    if not 0 <= first < end <= count:
        raise RefusedError(f"layers {first}..{end} do not lie in the 0..{count} of {label}")


def check_shapes(runs: Sequence[Run]) -> None:
    """MismatchError where a part's layers, or what is behind the last one's, are shaped like none of the first's."""
    first, faults, hint = _shapes(runs[0]), [], ""
    for run in runs[1:]:
        own = _shapes(run)
        for rest in sorted(own.keys() | first.keys()):
            if not own.get(rest, set()) & first.get(rest, set()):
                told = [
                    f"{shapes.get(rest, 'not there')} in {run_.part.label}"
                    for run_, shapes in ((runs[0], first), (run, own))
                ]
                faults.append(f"{run.stack.prefix}*.{rest}: {', '.join(told)}")
    front, last = runs[0].part, runs[-1].part
    for name in runs[-1].around(after=True):
        if name in front.table and front.table[name].shape != last.table[name].shape:
            faults.append(f"{name}: {front.table[name]} in {front.label}, {last.table[name]} in {last.label}")
            hint = "where vocabularies differ: reshape: vocab of each model first (tokenizer_source in mergekit's YAML)"
    if faults:
        listed = "\n    ".join(dict.fromkeys(faults[:20]))
        raise MismatchError(f"the parts do not fit on top of each other:\n    {listed}", hint=hint)


def _shapes(run: Run) -> dict[str, set[tuple[int, ...]]]:
    found: dict[str, set[tuple[int, ...]]] = {}
    for names in run.held.values():
        for rest, name in names:
            found.setdefault(rest, set()).add(run.part.table[name].shape)
    return found


def check_configs(runs: Sequence[Run]) -> None:
    """MismatchError where the config's one value cannot be right for all layers, or is one by a layer's number."""
    first, faults = runs[0], []
    for run in runs[1:]:
        for key in (*_SAME, "tie_word_embeddings"):
            one, other = (each.depth.section.get(key, each.part.config.get(key)) for each in (first, run))
            if one != other and key not in first.said:
                faults.append(f"{key}: {one!r} in {first.part.label}, {other!r} in {run.part.label}")
    if faults:
        hint = "reshape: untie gives a tied model a head of its own" if any("tie_word" in one for one in faults) else ""
        raise MismatchError(
            "the parts' configs do not fit together:\n    " + "\n    ".join(dict.fromkeys(faults)), hint=hint
        )
    numbers = [number for run in runs for number in run.layers]
    if (keys := fixed(first.depth.section)) and numbers != list(range(len(numbers))):
        raise MismatchError(
            f"{first.part.label}: config.json's {', '.join(keys)} tells layers apart by their number, "
            "and these layers get other numbers",
            hint="take the first layers of one model, in order",
        )


def taken(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """What the configs say of each layer taken, in the new order, by key."""
    found: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for run in runs for key in run.said):
        silent = [run.part.label for run in runs if key not in run.said]
        if silent and key != "layer_types":
            raise MismatchError(f"config.json says {key} of each layer of one part, and not of {', '.join(silent)}")
        whole = ["full_attention"] * max(len(run.held) for run in runs)  # what a config without the key means
        found[key] = [run.said.get(key, whole)[number] for run in runs for number in run.layers]
    return found


def differing(first: Run, other: Run) -> dict[str, tuple[Any, Any]]:
    """The entries in which two configs differ and that are not said layer by layer, with both values."""
    aside = {*_ASIDE, *first.depth.counts, *first.said, *other.said}
    one, two = first.depth.section, other.depth.section
    if not first.depth.counts or not other.depth.counts:
        return {}
    return {key: (one.get(key), two.get(key)) for key in sorted({*one, *two} - aside) if one.get(key) != two.get(key)}
