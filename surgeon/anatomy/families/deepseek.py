"""DeepSeek V3: latent attention, routed and shared experts; the layers behind the last are draft heads."""

from surgeon.anatomy.families.llama import ATTENTION, MLP
from surgeon.anatomy.families.moe import FUSED
from surgeon.anatomy.family import Family, Part, Role, rows, writes

_ATTENTION = "{trunk}layers.{i}.self_attn."
_MLP = "{trunk}layers.{i}.mlp."

DEEPSEEK = Family(
    "deepseek",
    ("deepseek_v3",),
    (
        *ATTENTION,
        *MLP,
        *FUSED,
        *rows(Role.READS_RESIDUAL, _ATTENTION + "q_a_proj.weight", _ATTENTION + "kv_a_proj_with_mqa.weight"),
        *rows(Role.INSIDE, _ATTENTION + "q_a_proj.bias", _ATTENTION + "kv_a_proj_with_mqa.bias"),
        *rows(Role.INSIDE, _ATTENTION + "q_a_layernorm.weight", _ATTENTION + "kv_a_layernorm.weight"),
        *rows(Role.INSIDE, _ATTENTION + "q_b_proj.weight", _ATTENTION + "kv_b_proj.weight"),
        *rows(Role.INSIDE, _MLP + "gate.e_score_correction_bias"),
        writes(_MLP + "experts.{e}.down_proj.weight", Part.MLP, -2),
        writes(_MLP + "shared_experts.down_proj.weight", Part.MLP, -2),
        *rows(Role.READS_RESIDUAL, _MLP + "experts.{e}.gate_proj.weight", _MLP + "experts.{e}.up_proj.weight"),
        *rows(Role.READS_RESIDUAL, _MLP + "shared_experts.gate_proj.weight", _MLP + "shared_experts.up_proj.weight"),
    ),
)
