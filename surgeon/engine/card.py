"""The model card of a result: what the Hub and its readers expect, from the plan alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from surgeon.planning.plan import Plan
from surgeon.store.checkpoint import Checkpoint

_KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag")


def model_card(plan: Plan, resolved: str) -> str:
    """README.md: metadata (base models, relation, tags, the base's licence), what was changed, and the recipe."""
    hub = [source.ref.partition("@")[0] for source in plan.sources.values() if source.revision]
    models = [source for source in plan.sources.values() if isinstance(source, Checkpoint)]
    data = ModelCardData(
        base_model=hub or None,
        base_model_relation=("merge" if len(plan.sources) > 1 else "finetune") if hub else None,
        library_name="transformers" if "architectures" in plan.files_from.config else None,
        tags=["surgeon", *(["merge"] if len(plan.sources) > 1 else [])],
        **({} if plan.files_from.single_file else card_metadata(plan.files_from.root)),
    )
    computed = [target for target in plan.targets if target.action == "compute"]
    inputs = "\n".join(f"- `{model}`: {source.ref}" for model, source in plan.sources.items())
    return (
        f"---\n{data.to_yaml().strip()}\n---\n\n# {len(models)} model(s), edited with surgeon\n\n"
        f"{len(computed)} of {len(plan.targets)} tensors are computed from the inputs below, the others byte copies "
        f"of {plan.files_from.ref}. `surgeon.json` lists every tensor with its hash; `surgeon verify` proves it.\n\n"
        f"{inputs}\n\n```yaml\n{resolved.strip()}\n```\n"
    )


def card_metadata(folder: Path) -> dict[str, Any]:
    """What a folder's model card says of licence, languages and use; {} where it has none that can be read."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        data = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, UnicodeDecodeError):
        return {}
    return {key: data[key] for key in _KEPT if data.get(key)}
