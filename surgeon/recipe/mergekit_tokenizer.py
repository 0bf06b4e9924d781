"""mergekit's `tokenizer_source` and `tokenizer`, as steps that bring each model to the vocabulary it asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from surgeon.errors import nearest
from surgeon.recipe.document import Faults, Node, kind
from surgeon.recipe.mergekit_references import References
from surgeon.space.parts import BASE

_UNION = "union"
_KEYS = ("source", "tokens", "pad_to_multiple_of")
_SOURCE = ("kind", "model", "token", "token_id")


def vocabulary_steps(
    root: Node, listed: Node, base_node: Node | None, references: References, faults: Faults
) -> dict[str, str]:
    """For each model's name that of the step that brings it to the output's vocabulary; steps join `references`.

    Empty where the recipe says nothing of tokenizers. `listed` is what names the models, in the order in which their
    tokens count.
    """
    tokenizer, source = root.get("tokenizer"), root.get("tokenizer_source")
    if tokenizer and source:
        faults.add("tokenizer and tokenizer_source say the same thing; write one of them", source.start)
    where = tokenizer or source
    if where is None:
        return {}
    base = references.name(base_node) if base_node else None
    named = [base, *(references.name(node) for node in _models(listed))]
    merged = list(dict.fromkeys(name for name in named if name is not None))
    order, found = list(merged), {}
    settings = dict(_settings(where, order, base, references, faults))
    for model in merged:
        step = {
            "reshape": where.with_value("vocab"),
            "of": where.with_value(model),
            "with": where.with_value(tuple(where.with_value(one) for one in order)),
            **settings,
        }
        found[model] = references.step(f"{model}_vocab", where.with_value(step))
    return found


def _models(node: Node) -> Iterator[Node]:
    """Every reference to a model in a list of models, slices or modules."""
    for key, child in node.mapping.items():
        yield from (child,) if key == "model" else _models(child)
    for item in node.items:
        yield from _models(item)


def _settings(
    where: Node, order: list[str], base: str | None, references: References, faults: Faults
) -> Iterator[tuple[str, Node]]:
    """The settings that all those steps share; a model named here alone joins the order."""
    given = where if where.mapping and where.get("model") is None else where.with_value({"source": where})
    faults.unknown_keys(given, _KEYS, "tokenizer")
    source = given.get("source")
    if source and source.text == BASE and base is None:
        faults.add("tokenizer: base needs a base_model", source)
    elif source and source.text not in (_UNION, BASE):
        yield "tokenizer", source.with_value(_joined(source, order, references))
    elif source and source.text == BASE:
        yield "tokenizer", source.with_value(base)
    if base is None:
        yield "missing", where.with_value("mean")
    if tokens := given.get("tokens"):
        if not isinstance(tokens.value, Mapping | None):
            faults.add(f"tokens is a mapping of tokens, not {kind(tokens)}", tokens)
        about = {token: _token(node, order, references, faults) for token, node in tokens.mapping.items()}
        yield "tokens", tokens.with_value(about)
    if pad := given.get("pad_to_multiple_of"):
        yield "pad_to_multiple_of", pad


def _joined(node: Node, order: list[str], references: References) -> str:
    """The name of a model, which is one of the order from now on."""
    name = references.name(node) or order[0]
    if name not in order:
        order.append(name)
    return name


def _token(node: Node, order: list[str], references: References, faults: Faults) -> Node:
    """Where a token comes from, with native names."""
    faults.unknown_keys(node, ("source", "force"), "a token's entry")
    source = node.get("source")
    if source is None:
        faults.add("a token's entry is {source: …}; this has none", node)
        return node
    given: Any = source.mapping
    if "kind" in given:
        faults.unknown_keys(source, _SOURCE, "a token's source")
        word = given["kind"]
        if word.text not in ("zero", "model_token"):
            faults.add(f"there is no kind of source {kind(word)}", word, nearest(word.text, ("zero", "model_token")))
        elif model := source.get("model"):
            source = source.with_child("model", model.with_value(_joined(model, order, references)))
    else:
        source = source.with_value(_joined(source, order, references))
    return node.with_child("source", source)
