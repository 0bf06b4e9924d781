"""mergekit's references to models: ``path_or_id[@revision][+lora[@revision]]``, or the mapping it stands for."""

from __future__ import annotations

from pathlib import Path

from surgeon.errors import nearest
from surgeon.recipe.document import Node, kind
from surgeon.recipe.faults import Faults
from surgeon.recipe.names import unique

_PARTS = ("model", "lora", "override_architecture")


class References:
    """Gives every checkpoint met a name: m0, m1 …; an adapter m0_lora; a model with its adapter a step."""

    def __init__(self, faults: Faults, notes: list[str]) -> None:
        self.faults, self.notes = faults, notes
        self.models: dict[str, Node] = {}
        self.steps: dict[str, Node] = {}
        self._names: dict[str, str] = {}
        self._taken = {"merged"}

    def name(self, node: Node) -> str | None:
        """The name of what a reference means; None with a fault noted where it means nothing."""
        model, lora = self._split(node)
        if not model:
            return None
        name = self._model(model, node, f"m{sum('_lora' not in known for known in self.models)}")
        if not lora:
            return name
        return self._with_lora(model, lora, name, node)

    def spelled(self, node: Node) -> str:
        """The reference as one text."""
        return "+".join(part for part in self._split(node) if part)

    def _model(self, ref: str, node: Node, name: str) -> str:
        if ref not in self._names:
            self._names[ref] = unique(name, self._taken)
            self.models[self._names[ref]] = Node(ref, node.at, node.at, from_user=True)
        return self._names[ref]

    def _with_lora(self, model: str, lora: str, name: str, node: Node) -> str:
        whole = f"{model}+{lora}"
        if whole not in self._names:
            adapter = self._model(lora, node, f"{name}_lora")
            self._names[whole] = unique(f"{name}_with_lora", self._taken)
            combine = Node(f"{name} + 1 * {adapter}", node.at, node.at)
            self.steps[self._names[whole]] = Node({"combine": combine}, node.at, node.at)
        return self._names[whole]

    def _split(self, node: Node) -> tuple[str, str]:
        """The model's and the adapter's reference; empty where there is none."""
        if node.mapping:
            return self._mapping(node)
        text = node.text
        if not text:
            self.faults.add(f"a model is a path or Hub id, not {kind(node)}", node)
            return "", ""
        model, _, lora = (text, "", "") if _exists(text) else text.partition("+")
        if "+" in lora and not _exists(lora):
            self.faults.add(f"{text!r} names more than one adapter; mergekit's form is model+lora", node)
            return "", ""
        return self._without_revision(model), self._without_revision(lora)

    def _mapping(self, node: Node) -> tuple[str, str]:
        for key, inner in node.mapping.items():
            if key not in _PARTS:
                self.faults.add_at_key(f"unknown key {key!r} in a model reference", inner, nearest(key, _PARTS))
        if override := node.get("override_architecture"):
            self.faults.add_at_key("override_architecture is not done by this version", override)
        model = self._part(node.get("model"), node)
        return model, self._part(node.get("lora"), node) if node.get("lora") else ""

    def _part(self, node: Node | None, parent: Node) -> str:
        if node is not None and node.text:
            return self._without_revision(node.text)
        path, revision = (node.get("path"), node.get("revision")) if node else (None, None)
        if path is None or not path.text:
            self.faults.add("a model reference as a mapping is {model: {path: …, revision: …}}", node or parent)
            return ""
        return self._without_revision(f"{path.text}@{revision.text}" if revision and revision.text else path.text)

    def _without_revision(self, text: str) -> str:
        """A local folder has no revisions: mergekit ignores one."""
        path, at, revision = text.partition("@")
        if at and not _exists(text) and _exists(path):
            note = f"{text}: {path} is a folder here; its revision {revision!r} is ignored"
            self.notes += [note] if note not in self.notes else []
            return path
        return text


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):
        return False
