"""mergekit's references to models: ``path_or_id[@revision][+lora[@revision]]``, or the mapping it stands for."""

from __future__ import annotations

from surgeon.recipe.document import Faults, Node, kind
from surgeon.recipe.names import exists, unique


class References:
    """Gives every checkpoint met a name: m0, m1 …; an adapter m0_lora; a model with its adapter a step.

    `documents` are the steps that other documents of the file may name as models, `brought` those that bring a model to
    the vocabulary of the result and are meant by its name.
    """

    def __init__(self, faults: Faults, notes: list[str]) -> None:
        self.faults, self.notes = faults, notes
        self.models: dict[str, Node] = {}
        self.steps: dict[str, Node] = {}
        self.documents: dict[str, str] = {}
        self.brought: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()

    def name(self, node: Node) -> str | None:
        """The name of what a reference means; None with a fault noted where it means nothing."""
        model, lora = self._split(node)
        if not model:
            return None
        name = self._model(model, node, f"m{sum('_lora' not in known for known in self.models)}")
        whole = f"{model}+{lora}"
        if lora and whole not in self._names:
            adapter = self._model(lora, node, f"{name}_lora")
            self._names[whole] = unique(f"{name}_with_lora", self._taken)
            combine = Node(f"{name} + 1 * {adapter}", node.at)
            self.steps[self._names[whole]] = Node({"combine": combine}, node.at, node.at)
        found = self._names[whole] if lora else name
        return self.brought.get(found, found)

    def step(self, name: str, node: Node, *, again: bool = True) -> str:
        """Add a step, called this or so; with `again` false, one that is there already under this name is meant."""
        if again or name not in self.steps:
            name = unique(name, self._taken)
            self.steps[name] = node if node.key else Node(node.value, node.at, node.at)
        return name

    def spelled(self, node: Node) -> str:
        """The reference as one text."""
        return "+".join(part for part in self._split(node) if part)

    def _model(self, ref: str, node: Node, name: str) -> str:
        if ref in self.documents:
            return self.documents[ref]
        if ref not in self._names:
            self._names[ref] = unique(name, self._taken)
            self.models[self._names[ref]] = Node(ref, node.at, node.at, from_user=True)
        return self._names[ref]

    def _split(self, node: Node) -> tuple[str, str]:
        """The model's and the adapter's reference; empty where there is none."""
        if node.mapping:
            self.faults.unknown_keys(node, ("model", "lora"), "a model reference")
            lora = node.get("lora")
            return self._part(node.get("model") or node), self._part(lora) if lora else ""
        model, _, lora = (node.text, "", "") if exists(node.text) else node.text.partition("+")
        if not node.text:
            self.faults.add(f"a model is a path or Hub id, not {kind(node)}", node)
        elif "+" in lora and not exists(lora):
            self.faults.add(f"{node.text!r} names more than one adapter; mergekit's form is model+lora", node)
            return "", ""
        return self._known_revision(model), self._known_revision(lora)

    def _part(self, node: Node) -> str:
        path, revision = (node.get("path"), node.get("revision")) if node.mapping else (node, None)
        if path is None or not path.text:
            self.faults.add("a model reference as a mapping is {model: {path: …, revision: …}}", node)
            return ""
        return self._known_revision(f"{path.text}@{revision.text}" if revision and revision.text else path.text)

    def _known_revision(self, text: str) -> str:
        """The reference; a local folder has no revisions, and mergekit ignores one."""
        path, at, revision = text.partition("@")
        if not at or exists(text) or not exists(path):
            return text
        note = f"{text}: {path} is a folder here; its revision {revision!r} is ignored"
        self.notes += [note] if note not in self.notes else []
        return path
