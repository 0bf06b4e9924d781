"""mergekit's YAML → a native recipe's tree, each node where it was written, its step with `semantics: mergekit`."""

from __future__ import annotations

from collections.abc import Mapping

from surgeon.errors import nearest
from surgeon.recipe.document import Node, kind
from surgeon.recipe.faults import Faults
from surgeon.recipe.mergekit_references import References
from surgeon.recipe.mergekit_settings import member_settings, note_ignored, step_settings
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
_LATER_METHODS = {
    "arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della", "della_linear", "karcher",
    "model_stock", "multislerp", "nearswap", "nuslerp", "passthrough", "ram", "ramplus_tl", "sce",
}  # fmt: skip
_KEYS = {
    "merge_method", "models", "parameters", "base_model", "dtype", "out_dtype", "tokenizer_source", "name", *_LATER,
}  # fmt: skip


def translate(root: Node, faults: Faults, notes: list[str]) -> Node:
    """The native tree; what is not done yet is noted as a fault by name, what has no effect as a note."""
    _check_keys(root, faults, notes)
    method = _method(root.mapping["merge_method"], faults)
    references = References(faults, notes)
    members = _members(root, references, faults)
    base_node = root.get("base_model")
    base = references.name(base_node) if base_node is not None else None
    if method is None or "models" not in root.mapping:
        faults.check()
    assert method is not None
    members = _settle_base(method, members, base, base_node, faults, notes)
    where = root.mapping["merge_method"]
    step = {
        "merge": where,
        "models": Node(_member_nodes(root, method, members, faults, notes), where.at, where.key),
        "semantics": Node("mergekit", where.at, where.at),
        **step_settings(method, root, faults, notes),
    }
    if method.needs_base:
        step["base_model"] = _base(method, base, base_node, where, faults)
    files_from = base_node.with_value(base) if base_node and base and not method.needs_base else None
    return _recipe(root, references, step, _output(root, files_from, faults, notes))


def _recipe(root: Node, references: References, step: Mapping[str, Node], output: Mapping[str, Node]) -> Node:
    at = root.at
    steps = {**references.steps, STEP: Node(step, step["merge"].at, step["merge"].key)}
    tree = {"surgeon": Node(1, at, at), "models": Node(references.models, at, at), "steps": Node(steps, at, at)}
    return Node({**tree, "output": Node(output, at, at)}, at)


def _check_keys(root: Node, faults: Faults, notes: list[str]) -> None:
    for key, node in root.mapping.items():
        if key not in _KEYS:
            faults.add_at_key(f"unknown key {key!r} in mergekit's YAML", node, nearest(key, _KEYS))
        elif key in _LATER and node.value is not None:
            faults.add_at_key(f"{_LATER[key]} not done by this version", node)
    if "models" not in root.mapping and not any(root.get(key) for key in ("slices", "modules")):
        faults.add("'models' is missing", root)
    if root.get("name"):
        notes.append("name: only mergekit-multi uses it; ignored")
    source = root.get("tokenizer_source")
    if source is not None and source.text != "base":
        faults.add(f"tokenizer_source: {kind(source)} is not done by this version; only base is", source)
    elif source is not None:
        notes.append("tokenizer_source: base: the base model's tokenizer files are kept as they are")


def _method(node: Node, faults: Faults) -> MergeMethod | None:
    methods = merge_methods()
    if node.text in methods:
        return methods[node.text]
    if node.text in _LATER_METHODS:
        faults.add(f"mergekit method {kind(node)} is not done by this version; known: {', '.join(methods)}", node)
    else:
        faults.add(f"there is no merge method {kind(node)}", node, nearest(node.text, {*methods, *_LATER_METHODS}))
    return None


def _members(root: Node, references: References, faults: Faults) -> list[tuple[str, Node]]:
    """The models listed: native name and entry."""
    models = root.get("models")
    if models is not None and not models.items:
        faults.add_at_key(f"models is a list of {{model: …, parameters: …}}, not {kind(models)}", models)
    found: list[tuple[str, Node]] = []
    for entry in models.items if models else ():
        for key, inner in entry.mapping.items():
            if key not in ("model", "parameters"):
                hint = nearest(key, ("model", "parameters"))
                faults.add_at_key(f"unknown key {key!r} in a model's entry", inner, hint)
        model = entry.get("model")
        name = references.name(model) if model is not None else None
        if model is None:
            faults.add("an entry of models is {model: …, parameters: …}; this has no model", entry)
        elif name is not None and any(name == other for other, _ in found):
            faults.add(f"{references.spelled(model)} is listed twice", model)
        elif name is not None:
            found.append((name, entry))
    return found


def _settle_base(
    method: MergeMethod,
    members: list[tuple[str, Node]],
    base: str | None,
    base_node: Node | None,
    faults: Faults,
    notes: list[str],
) -> list[tuple[str, Node]]:
    """mergekit's habits: the base is no member of methods that need one, and one more member of those that do not."""
    if base is None or base_node is None:
        return members
    if not method.needs_base:
        if any(name == base for name, _ in members):
            return members
        notes.append(f"base_model: mergekit's {method.name} has none; it is one more model, as mergekit has it")
        return [*members, (base, Node({}, base_node.at, base_node.key))]
    for name, entry in members:
        if name == base and entry.get("parameters"):
            notes.append(f"parameters of the base model have no effect with {method.name}")
    return [(name, entry) for name, entry in members if name != base]


def _member_nodes(
    root: Node, method: MergeMethod, members: list[tuple[str, Node]], faults: Faults, notes: list[str]
) -> dict[str, Node]:
    note_ignored(method, root.get("parameters"), "", faults, notes)
    found = {}
    for name, entry in members:
        note_ignored(method, entry.get("parameters"), name, faults, notes)
        found[name] = Node(member_settings(method, root, entry, faults), entry.at, entry.key or entry.at)
    return found


def _base(method: MergeMethod, base: str | None, node: Node | None, where: Node, faults: Faults) -> Node:
    if node is None:
        faults.add(f"{method.name} needs base_model", where)
    return Node(base or "m0", (node or where).at, (node or where).key)


def _output(root: Node, files_from: Node | None, faults: Faults, notes: list[str]) -> dict[str, Node]:
    """`out_dtype`, else `dtype`, is what is written; arithmetic is float32 whatever `dtype` says."""
    found: dict[str, Node] = {}
    for key in ("dtype", "out_dtype"):
        node = root.get(key)
        if node is None:
            continue
        if node.text not in FLOATS.values():
            hint = nearest(node.text, FLOATS.values())
            faults.add(f"{key}: {kind(node)} is not a dtype to merge in", node, hint)
            continue
        found["dtype"] = node
        if key == "dtype" and node.text in ("float16", "bfloat16"):
            notes.append(f"dtype: {node.text}: mergekit computes in it; here float32 is rounded once")
    return found | ({"files_from": files_from} if files_from else {})
