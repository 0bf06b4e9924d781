"""Mixtures of experts with Llama's attention: Mixtral, Qwen2- and Qwen3-MoE, experts stored one by one or fused."""

from surgeon.anatomy.families.llama import ATTENTION, MLP
from surgeon.anatomy.family import Family, Part, Role, rows, writes

_MLP = "{trunk}layers.{i}.mlp."
_SPARSE = "{trunk}layers.{i}.block_sparse_moe."

#: Experts as one array each, [expert, out, in], as transformers holds them in memory.
FUSED = (
    writes(_MLP + "experts.down_proj", Part.MLP, -2),
    *rows(Role.READS_RESIDUAL, _MLP + "experts.gate_up_proj", _MLP + "gate.weight"),
)

MIXTRAL = Family(
    "mixtral",
    ("mixtral",),
    (
        *ATTENTION,
        writes(_SPARSE + "experts.{e}.w2.weight", Part.MLP, -2),
        *rows(Role.READS_RESIDUAL, _SPARSE + "experts.{e}.w1.weight", _SPARSE + "experts.{e}.w3.weight"),
        *rows(Role.READS_RESIDUAL, _SPARSE + "gate.weight"),
        *FUSED,
    ),
)

#: Qwen2's mixtures have an expert besides that every token goes through.
QWEN_MOE = Family(
    "qwen_moe",
    ("qwen2_moe", "qwen3_moe"),
    (
        *ATTENTION,
        *MLP,
        writes(_MLP + "shared_expert.down_proj.weight", Part.MLP, -2),
        *rows(Role.READS_RESIDUAL, *(f"{_MLP}shared_expert.{part}_proj.weight" for part in ("gate", "up"))),
        *rows(Role.READS_RESIDUAL, _MLP + "shared_expert_gate.weight"),
        writes(_MLP + "experts.{e}.down_proj.weight", Part.MLP, -2),
        *rows(Role.READS_RESIDUAL, _MLP + "experts.{e}.gate_proj.weight", _MLP + "experts.{e}.up_proj.weight"),
        *FUSED,
    ),
)
