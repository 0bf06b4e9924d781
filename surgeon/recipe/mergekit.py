"""mergekit's YAML → a native recipe's tree, each node where it was written, its steps with `semantics: mergekit`."""

from __future__ import annotations

import graphlib
from collections.abc import Sequence

from surgeon.errors import nearest
from surgeon.recipe.document import Faults, Node, kind
from surgeon.recipe.mergekit_modules import of_modules
from surgeon.recipe.mergekit_references import References
from surgeon.recipe.mergekit_slices import Scope, of_models, of_slices
from surgeon.recipe.mergekit_tokenizer import vocabulary_steps
from surgeon.recipe.names import identifier
from surgeon.space.method import MergeMethod
from surgeon.space.registry import merge_methods
from surgeon.tensors import FLOATS

STEP = "merged"
_FORMS = {"models": of_models, "slices": of_slices, "modules": of_modules}
_KEYS = {
    "merge_method", *_FORMS, "parameters", "base_model", "dtype", "out_dtype", "tokenizer_source", "tokenizer",
    "chat_template", "name",
}  # fmt: skip


def translate(documents: Sequence[Node], faults: Faults, notes: list[str]) -> Node:
    """The native tree; what is not done is noted as a fault by name, what has no effect as a note.

    Of several documents (mergekit-multi), those with a `name` may be named as models by others.
    """
    references = References(faults, notes)
    output: dict[str, Node] = {}
    for root in _ordered(documents, faults):
        name = root.mapping["name"].text if root.get("name") and len(documents) > 1 else ""
        output = _output(root, faults, notes)
        made = _merged(root, references, output, faults, notes, identifier(name) if name else STEP)
        references.documents[name] = made
    if not references.steps:
        faults.check()
    first = documents[0]
    tree = {
        "surgeon": Node(1, first.at),
        "models": Node(references.models, first.at),
        "steps": Node(references.steps, first.at),
        "output": Node(output, first.at),
    }
    return Node(tree, first.at)


def _merged(
    root: Node, references: References, output: dict[str, Node], faults: Faults, notes: list[str], name: str
) -> str:
    """The name of the step that is a document's result."""
    _check_keys(root, faults, notes)
    where, base = root.mapping["merge_method"], root.get("base_model")
    form = next((form for form in _FORMS if root.get(form)), None)
    method = _method(where, faults)
    if form is None or method is None:
        faults.check()
    assert form is not None and method is not None
    scope = Scope(where, method, base, (root.get("parameters"),), references, faults, notes)
    references.brought = {}
    references.brought = vocabulary_steps(root, root.mapping[form], base, references, faults)
    made = _FORMS[form](root, scope, name)
    if base and not method.takes_base and (of := references.name(base)):
        output["files_from"] = base.with_value(of)
    return made


def _ordered(documents: Sequence[Node], faults: Faults) -> list[Node]:
    """The documents, each behind those it names as models; the result last."""
    if len(documents) == 1:
        return list(documents)
    named = {node.text: root for root in documents if (node := root.get("name")) and node.text}
    unnamed = [root for root in documents if not root.get("name")]
    for root in unnamed[1:]:
        faults.add("only one document goes without a name: the one that is the result", root)
    uses = {name: _texts(root) & named.keys() - {name} for name, root in named.items()}
    try:
        order = [named[name] for name in graphlib.TopologicalSorter(uses).static_order()]
    except graphlib.CycleError as error:
        faults.add(f"documents name each other in a circle: {', '.join(error.args[1])}", documents[0])
        faults.check()
        raise
    used = set[str]().union(*uses.values(), *(_texts(root) for root in unnamed))
    results = unnamed[:1] or [root for name, root in named.items() if name not in used]
    for name in sorted(named.keys() - used) if unnamed else ():
        faults.add(f"document {name!r} is used by no other, and a recipe has one result", named[name].mapping["name"])
    for root in results[1:]:
        faults.add("several documents are used by no other, and a recipe has one result", root.mapping["name"])
    return [root for root in order if root not in results[:1]] + results[:1]


def _texts(node: Node) -> set[str]:
    """Every text in a tree, but for the names of documents."""
    inner = [child for key, child in node.mapping.items() if key != "name"]
    return {node.text}.union(*(_texts(child) for child in (*inner, *node.items)))


def _check_keys(root: Node, faults: Faults, notes: list[str]) -> None:
    faults.unknown_keys(root, _KEYS, "mergekit's YAML")
    forms = [form for form in _FORMS if root.get(form)]
    if len(forms) != 1:
        found = f"there are {' and '.join(forms)}" if forms else "'models' is missing"
        faults.add(f"{found}: a merge has one of {', '.join(_FORMS)}", root)


def _method(node: Node, faults: Faults) -> MergeMethod | None:
    methods = merge_methods()
    if node.text not in methods:
        faults.add(f"there is no merge method {kind(node)}", node, nearest(node.text, methods))
    return methods.get(node.text)


def _output(root: Node, faults: Faults, notes: list[str]) -> dict[str, Node]:
    """`out_dtype`, else `dtype`, is what is written; arithmetic is float32 whatever `dtype` says."""
    found: dict[str, Node] = {}
    for key in ("dtype", "out_dtype"):
        node = root.get(key)
        if node and node.text in FLOATS.values():
            found["dtype"] = node
        elif node:
            faults.add(f"{key}: {kind(node)} is not a dtype to merge in", node, nearest(node.text, FLOATS.values()))
    if template := root.get("chat_template"):
        found["chat_template"] = template
    if (dtype := root.get("dtype")) and dtype.text in ("float16", "bfloat16"):
        notes.append(f"dtype: {dtype.text}: mergekit computes in it; here float32 is rounded once")
    return found
