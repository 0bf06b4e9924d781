"""mergekit's YAML → a native recipe's tree, each node where it was written, its step with `semantics: mergekit`."""

from __future__ import annotations

from surgeon.errors import nearest
from surgeon.recipe.document import Faults, Node, kind
from surgeon.recipe.mergekit_references import References
from surgeon.recipe.mergekit_settings import Parameters
from surgeon.space.method import MergeMethod
from surgeon.space.registry import merge_methods
from surgeon.tensors import FLOATS

STEP = "merged"
_LATER = {
    "slices": "slices (layers taken from several models) are",
    "modules": "modules (parts of multimodal models) are",
    "tokenizer": "tokenizer surgery is",
    "chat_template": "setting a chat template is",
}
_KEYS = {
    "merge_method", "models", "parameters", "base_model", "dtype", "out_dtype", "tokenizer_source", "name", *_LATER,
}  # fmt: skip

Members = dict[str, Node]


def translate(root: Node, faults: Faults, notes: list[str]) -> Node:
    """The native tree; what is not done yet is noted as a fault by name, what has no effect as a note."""
    _check_keys(root, faults, notes)
    where, base_node = root.mapping["merge_method"], root.get("base_model")
    method = _method(where, faults)
    references = References(faults, notes)
    members = _members(root, references, faults)
    base = references.name(base_node) if base_node else None
    output = _output(root, faults, notes)
    if method is None or "models" not in root.mapping:
        faults.check()
    assert method is not None
    parameters = Parameters(method, root, faults, notes)
    step = {"merge": where, "semantics": where.with_value("mergekit"), **parameters.of_step()}
    if method.needs_base or (method.takes_base and base_node):
        if base_node is None:
            faults.add(f"{method.name} needs base_model", where)
        step["base_model"] = (base_node or where).with_value(base or "m0")
        if (entry := members.pop(base or "", None)) and entry.get("parameters"):
            notes.append(f"parameters of the base model have no effect with {method.name}")
    elif base and base_node:
        output["files_from"] = base_node.with_value(base)
        if base not in members:
            notes.append(f"base_model: mergekit's {method.name} has none; it is one more model, as mergekit has it")
            members[base] = base_node.with_value({})
    step["models"] = where.with_value({name: parameters.of_model(name, entry) for name, entry in members.items()})
    tree = {
        "surgeon": Node(1, root.at),
        "models": Node(references.models, root.at),
        "steps": Node({**references.steps, STEP: where.with_value(step)}, root.at),
        "output": Node(output, root.at),
    }
    return Node(tree, root.at)


def _check_keys(root: Node, faults: Faults, notes: list[str]) -> None:
    faults.unknown_keys(root, _KEYS, "mergekit's YAML")
    for key, what in _LATER.items():
        if node := root.get(key):
            faults.add(f"{what} not done by this version", node.start)
    if "models" not in root.mapping and not any(root.get(key) for key in ("slices", "modules")):
        faults.add("'models' is missing", root)
    if root.get("name"):
        notes.append("name: only mergekit-multi uses it; ignored")
    source = root.get("tokenizer_source")
    if source and source.text == "base":
        notes.append("tokenizer_source: base: the base model's tokenizer files are kept as they are")
    elif source:
        faults.add(f"tokenizer_source: {kind(source)} is not done by this version; only base is", source)


def _method(node: Node, faults: Faults) -> MergeMethod | None:
    methods = merge_methods()
    if node.text not in methods:
        faults.add(f"there is no merge method {kind(node)}", node, nearest(node.text, methods))
    return methods.get(node.text)


def _members(root: Node, references: References, faults: Faults) -> Members:
    """The entries of the models listed, by their native names."""
    models = root.get("models")
    if models and not models.items:
        faults.add(f"models is a list of {{model: …, parameters: …}}, not {kind(models)}", models.start)
    found: Members = {}
    for entry in models.items if models else ():
        faults.unknown_keys(entry, ("model", "parameters"), "a model's entry")
        model = entry.get("model")
        if model is None:
            faults.add("an entry of models is {model: …, parameters: …}; this has no model", entry)
        elif (name := references.name(model)) in found:
            faults.add(f"{references.spelled(model)} is listed twice", model)
        elif name is not None:
            found[name] = entry
    return found


def _output(root: Node, faults: Faults, notes: list[str]) -> dict[str, Node]:
    """`out_dtype`, else `dtype`, is what is written; arithmetic is float32 whatever `dtype` says."""
    found: dict[str, Node] = {}
    for key in ("dtype", "out_dtype"):
        node = root.get(key)
        if node and node.text in FLOATS.values():
            found["dtype"] = node
        elif node:
            faults.add(f"{key}: {kind(node)} is not a dtype to merge in", node, nearest(node.text, FLOATS.values()))
    if (dtype := root.get("dtype")) and dtype.text in ("float16", "bfloat16"):
        notes.append(f"dtype: {dtype.text}: mergekit computes in it; here float32 is rounded once")
    return found
