"""gpt-oss: experts fused and the other way round, [expert, in, out], with a bias each; sinks in the attention."""

from surgeon.anatomy.families.llama import ATTENTION
from surgeon.anatomy.family import Family, Part, Role, rows, writes

_MLP = "{trunk}layers.{i}.mlp."

GPT_OSS = Family(
    "gpt_oss",
    ("gpt_oss",),
    (
        *ATTENTION,
        writes(_MLP + "experts.down_proj", Part.MLP, -1),
        writes(_MLP + "experts.down_proj_bias", Part.MLP, -1),
        *rows(Role.READS_RESIDUAL, _MLP + "experts.gate_up_proj", axis=-2),
        *rows(Role.READS_RESIDUAL, _MLP + "router.weight"),
        *rows(Role.INSIDE, _MLP + "experts.gate_up_proj_bias", _MLP + "router.bias"),
        *rows(Role.INSIDE, "{trunk}layers.{i}.self_attn.sinks"),
    ),
)
