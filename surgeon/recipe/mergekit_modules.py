"""mergekit's `modules`, the parts of a multimodal or encoder-decoder model: each merged by itself, then joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from surgeon.errors import nearest
from surgeon.recipe.document import Node
from surgeon.recipe.mergekit_slices import Scope, of_models, of_slices

_FORMS: Mapping[str, Callable[[Node, Scope, str], str]] = {"models": of_models, "slices": of_slices}
_VISION = r"(model\.)?(vision_tower|vision_model|visual)\."
_MERGER = r"(merger|deepstack_merger_list)\."
#: mergekit's names of modules, and how their tensors' names begin.
_TENSORS = {
    "default": "",
    "text_decoder": r"(model\.)?language_model\.|lm_head\.|model\.(layers|embed_tokens|norm)\.",
    "decoder": r"(model\.)?decoder\.|lm_head\.|proj_out\.",
    "encoder": r"(model\.)?encoder\.",
    "shared": r"shared\.",
    "vision_tower": rf"{_VISION}(?!{_MERGER})",
    "vision_model": rf"{_VISION}(?!{_MERGER})",
    "multi_modal_projector": rf"(model\.)?multi_modal_projector\.|{_VISION}{_MERGER}",
}


def of_modules(root: Node, scope: Scope, name: str) -> str:
    """The step that joins the modules' results. What no module holds is the base model's, or the first model's."""
    made: dict[str, str] = {}
    if not root.mapping["modules"].mapping:
        scope.faults.add(f"modules is a mapping of {', '.join(_TENSORS)}", root.mapping["modules"].start)
    for module, entry in root.mapping["modules"].mapping.items():
        scope.faults.unknown_keys(entry, (*_FORMS, "parameters"), "a module")
        form = next((form for form in _FORMS if entry.get(form)), None)
        if module not in _TENSORS:
            scope.faults.add(f"there is no module {module!r}", entry.start, nearest(module, _TENSORS))
        elif form is None:
            scope.faults.add("a module has models or slices", entry.start)
        else:
            inner = replace(scope, levels=(entry.get("parameters"), *scope.levels))
            called = name if len(root.mapping["modules"].mapping) == 1 and not _TENSORS[module] else module
            made[module] = _FORMS[form](entry, inner, called)
    if len(made) == 1 and "default" in made:
        return made["default"]
    return _joined(root.mapping["modules"], made, scope, name)


def _joined(node: Node, made: Mapping[str, str], scope: Scope, name: str) -> str:
    """The first part gives the config, which slices of a text model change; the rest comes from a model as it is."""
    text = next((module for module in ("text_decoder", "decoder") if module in made), None)
    references = scope.references
    first = next(iter(references.models), None)
    whole = references.name(scope.base) if scope.base else references.brought.get(first or "", first)
    if whole is None:
        return name
    parts = [(whole, "")] if text is None else [(made[text], ""), (whole, f"re:^(?!{_TENSORS[text]})")]
    parts += [(made[module], f"re:^({_TENSORS[module]})") for module in made if module != text]
    listed = [{"of": node.with_value(of), **({"targets": node.with_value(fit)} if fit else {})} for of, fit in parts]
    step = {"reshape": node.with_value("join"), "parts": node.with_value(tuple(node.with_value(one) for one in listed))}
    scope.notes.append(
        "modules: tensors in no module named are kept as they are in " + whole + "; mergekit leaves them out"
    )
    return references.step(name, node.with_value(step))
