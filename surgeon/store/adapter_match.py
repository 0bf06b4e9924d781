"""An adapter's targets against a base model's tensors: names, shapes and orientation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from surgeon.store.adapter_keys import Replacement, Update
from surgeon.tensors import TensorSpec

#: Prefixes that a model class puts before the names on disk, or leaves away. One is taken off and one put on, the
#: same for all tensors of an adapter.
PREFIXES = (
    "", "model.", "transformer.", "base_model.", "language_model.", "model.language_model.", "language_model.model.",
)  # fmt: skip

#: Names (last part) of the layers that GPT-2 and its relatives store as [in, out].
CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")

#: Output heads and input embeddings (last part of the module's name) that a model may tie to each other.
_HEADS = ("lm_head", "embed_out")
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")
_FURTHER_HEADS = ("output.weight", "model.output.weight", "language_model.output.weight")

#: Tasks, as PEFT calls them, of models without a language modelling head.
_HEADLESS = ("FEATURE_EXTRACTION", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")


def renamed(targets: Iterable[str], base: Mapping[str, TensorSpec]) -> tuple[dict[str, str], list[str]]:
    """Target → name in the base, and what cannot be found."""
    targets = list(targets)
    best: list[dict[str, str]] = []
    for move in product(PREFIXES, PREFIXES):
        names = {target: moved for target in targets if (moved := _moved(target, *move)) in base}
        if len(set(names.values())) < len(names) or names in best:
            continue
        if not best or len(names) > len(best[0]):
            best = [names]
        elif len(names) == len(best[0]):
            best.append(names)
    names = best[0]
    missing = [_missing(target, base) for target in targets if target not in names]
    if missing or len(best) == 1 or all(target == name for target, name in names.items()):
        return names, missing
    target = next(target for target in targets if names[target] != best[1][target])
    return {}, [f"{target}: cannot tell whether {names[target]} or {best[1][target]} is meant"]


def parted(
    updates: Mapping[str, tuple[Update, ...]], base: Mapping[str, TensorSpec], config: Mapping[str, Any]
) -> list[str]:
    """Embeddings trained whole beside a head that was tied to them and kept the base's values.

    Putting the new embedding into the base would change that head too, which the training did not.
    """
    made_of = config.get("auto_mapping")
    model_class = str(made_of.get("base_model_class", "LM")) if isinstance(made_of, dict) else "LM"
    headless = config.get("task_type") in _HEADLESS or not any(mark in model_class for mark in ("LM", "Generation"))
    if headless or _has_head(base):
        return []
    whole = [target for target, found in updates.items() if len(found) == 1 and isinstance(found[0], Replacement)]
    return [
        f"{target}: trained whole while the base's head is tied to it; the trained model has a head of its own"
        for target in whole
        if target.endswith(".weight") and _leaf(target) in _EMBEDDINGS
    ]


def oriented(
    updates: tuple[Update, ...], name: str, base: Mapping[str, TensorSpec]
) -> tuple[tuple[Update, ...], list[str]]:
    """The updates of one tensor in the orientation of the base's tensor `name`, and what does not fit."""
    spec, placed, faults = base[name], [], []
    for update in updates:
        turned = _turned(update, name, base)
        shape = turned.value.spec.shape if isinstance(turned, Replacement) else turned and turned.shape
        if turned is None:
            faults.append(f"{name}: is square and may be stored either way; the adapter does not say which")
        elif shape != spec.shape:
            faults.append(f"{name}: is {spec}, the adapter's is {list(shape or ())}")
        else:
            placed.append(turned)
    return tuple(placed), faults


def _turned(update: Update, name: str, base: Mapping[str, TensorSpec]) -> Update | None:
    """The update as the base stores the tensor; None where that cannot be known.

    PEFT decides by the class of each layer and writes down only what the last one was, so fan_in_fan_out alone proves
    nothing. One way fits a tensor that is not square; a square one is [out, in], except in the layers of CONV1D.
    """
    if isinstance(update, Replacement) or update.embedding:
        return update
    other = replace(update, transposed=not update.transposed)
    if update.shape != other.shape:
        return other if other.shape == base[name].shape else update
    if _leaf(name) in CONV1D:
        by_base = _stores_conv1d(base)
        return update if by_base in (None, update.transposed) else other
    return None if update.transposed else update


def stored_transposed(name: str, base: Mapping[str, TensorSpec]) -> bool:
    """Whether a weight is one of the CONV1D layers and the base stores those as [in, out]."""
    return _leaf(name) in CONV1D and bool(_stores_conv1d(base))


def _stores_conv1d(base: Mapping[str, TensorSpec]) -> bool | None:
    """Whether the base stores the CONV1D layers as [in, out]: a bias is as long as the side of the outputs."""
    for name, spec in base.items():
        module, _, leaf = name.rpartition(".")
        bias = base.get(f"{module}.bias")
        if leaf == "weight" and module.rpartition(".")[2] in CONV1D and bias and len(spec.shape) == 2:
            rows, columns = spec.shape
            if rows != columns and bias.shape in ((rows,), (columns,)):
                return bias.shape == (columns,)
    return None


def _moved(name: str, taken: str, put: str) -> str:
    """`name` with one prefix for another; names that do not bear the first stay."""
    return put + name.removeprefix(taken) if name.startswith(taken) else name


def _leaf(name: str) -> str:
    """The last part of the module of a weight: model.layers.0.mlp.c_fc.weight → c_fc."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _has_head(base: Mapping[str, TensorSpec]) -> bool:
    return any(name in _FURTHER_HEADS or (name.endswith(".weight") and _leaf(name) in _HEADS) for name in base)


def _missing(target: str, base: Mapping[str, TensorSpec]) -> str:
    if _leaf(target) in _HEADS and not _has_head(base):
        return (
            f"{target}: the base has no such tensor, its head is tied to the embedding; an update of the head alone "
            "needs a base with tie_word_embeddings false and the head written out"
        )
    return f"{target}: the base has no such tensor"
