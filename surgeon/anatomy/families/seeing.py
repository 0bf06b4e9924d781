"""Models that see: a language model, a vision tower beside it, and a projector whose last layer writes embeddings.

An image's features take the place of tokens' embeddings, so that what the projector writes is in the stream from the
first block on. On disk the parts are called as transformers 4 or 5 calls them.
"""

from surgeon.anatomy.families.gemma import ROWS as GEMMA_ROWS
from surgeon.anatomy.families.llama import ATTENTION, MLP
from surgeon.anatomy.family import Family, Part, Role, Row, rows, writes

_TRUNKS = ("language_model.model.", "model.language_model.", "model.")
_HEADS = {"language_model.model.": "language_model.lm_head.weight"}
_PREFIXES = ("", "model.")
_HEAD = rows(Role.UNEMBED, *_HEADS.values())


def _beside(*names: str) -> tuple[Row, ...]:
    """What is beside the language model, under either prefix."""
    return rows(Role.ASIDE, *(f"{prefix}{name}" for prefix in _PREFIXES for name in names))


def _projected(name: str, axis: int) -> tuple[Row, ...]:
    """A tensor that writes embeddings, under either prefix."""
    return tuple(writes(f"{prefix}{name}", Part.EMBED, axis) for prefix in _PREFIXES)


GEMMA3 = Family(
    "gemma3",
    ("gemma3",),
    (
        *GEMMA_ROWS,
        *_projected("multi_modal_projector.mm_input_projection_weight", -1),
        *_beside("vision_tower.{rest}", "multi_modal_projector.mm_soft_emb_norm.weight"),
        *_HEAD,
    ),
    trunks=_TRUNKS,
    heads=_HEADS,
    gain=1.0,
    tied=True,
    language="language_model",
    mid="pre_feedforward_layernorm",
)

LLAVA = Family(
    "llava",
    ("llava",),
    (
        *ATTENTION,
        *MLP,
        *_projected("multi_modal_projector.linear_2.weight", -2),
        *_projected("multi_modal_projector.linear_2.bias", -1),
        *_beside("vision_tower.{rest}", "multi_modal_projector.linear_1.{rest}", "image_newline"),
        *_HEAD,
    ),
    trunks=_TRUNKS,
    heads=_HEADS,
    language="language_model",
)

QWEN2_VL = Family(
    "qwen2_vl",
    ("qwen2_vl", "qwen2_5_vl"),
    (
        *ATTENTION,
        *MLP,
        *(writes(f"{prefix}visual.merger.mlp.2.weight", Part.EMBED, -2) for prefix in _PREFIXES),
        *(writes(f"{prefix}visual.merger.mlp.2.bias", Part.EMBED, -1) for prefix in _PREFIXES),
        *_beside("visual.{rest}"),
        *_HEAD,
    ),
    trunks=("model.language_model.", "model."),
    language="language_model",
)
