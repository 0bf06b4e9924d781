"""A folder's tensors against a plan's: missing, too many, and the ways a tied head may be stored."""

from __future__ import annotations

import re

from surgeon.engine.reading import Files
from surgeon.measuring.reading import same_bytes
from surgeon.measuring.verdict import Finding, mismatch, note
from surgeon.planning.plan import Plan
from surgeon.planning.step import Target
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.header import Stored

_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
    "word_embeddings.weight",
)

#: Buffers that older libraries stored and newer ones compute: nothing is lost with them.
_BUFFERS = re.compile(r"\.(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias)$")

Pair = tuple[Target, Stored]


def pairs(plan: Plan, checkpoint: Checkpoint, files: Files) -> tuple[list[Finding], list[Pair]]:
    """The targets with the tensors that hold them, and what does not pair."""
    findings: list[Finding] = []
    matched: list[Pair] = []
    for target in plan.targets:
        stored = checkpoint.tensors.get(target.name)
        if stored is None:
            findings.append(_missing(plan, checkpoint, target, files))
        elif stored.spec.shape != target.spec.shape:
            turned = " (transposed?)" if stored.spec.shape == target.spec.shape[::-1] else ""
            findings.append(
                mismatch(target.name, f"has shape {list(stored.spec.shape)}, not {list(target.spec.shape)}{turned}")
            )
        else:
            matched.append((target, stored))
            if stored.spec.dtype != target.spec.dtype:
                # A dtype the recipe names is part of what it asks for; one it only takes over from a model is not.
                judged = note if plan.recipe.output.dtype is None else mismatch
                findings.append(
                    judged(target.name, f"is stored as {stored.spec.dtype}, the recipe gives {target.spec.dtype}")
                )
    known = {target.name for target in plan.targets}
    findings += [_too_many(checkpoint, name, files) for name in checkpoint.tensors if name not in known]
    return findings, matched


def _missing(plan: Plan, checkpoint: Checkpoint, target: Target, files: Files) -> Finding:
    if _BUFFERS.search(target.name) and target.action == "copy":
        return note(target.name, "a buffer that newer libraries do not store")
    if target.name.endswith(_HEADS) and _tied(plan, checkpoint):
        embedding = next((t for t in plan.targets if t.name.endswith(_EMBEDDINGS)), None)
        if embedding and embedding.stored and target.stored and same_bytes(files, embedding.stored, target.stored):
            return note(target.name, "is tied to the embedding and not stored")
    return mismatch(target.name, "a tensor is missing")


def _too_many(checkpoint: Checkpoint, name: str, files: Files) -> Finding:
    embedding = next((stored for other, stored in checkpoint.tensors.items() if other.endswith(_EMBEDDINGS)), None)
    if name.endswith(_HEADS) and embedding and same_bytes(files, embedding, checkpoint.tensors[name]):
        return note(name, "is stored although tied: a copy of the embedding")
    return mismatch(name, "a tensor that the recipe does not give")


def _tied(plan: Plan, checkpoint: Checkpoint) -> bool:
    """Whether the config that will be read ties the head; a single file has none, so the recipe's counts."""
    config = checkpoint.config or plan.written_config
    text = config.get("text_config")
    return bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, dict) else False))
