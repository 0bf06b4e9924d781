"""Llama and what shares its layout: Mistral, Qwen2 (biases on q, k, v) and Qwen3 (norms on queries and keys)."""

from surgeon.anatomy.family import Family, Part, Role, rows, writes

_ATTENTION = "{trunk}layers.{i}.self_attn."
_MLP = "{trunk}layers.{i}.mlp."

#: Heads that draft further tokens: they read the stream's end, and write into one of their own.
DRAFTS = rows(Role.ASIDE, "mtp.{rest}", "{trunk}mtp.{rest}", "{trunk}mtp_layers.{rest}", "{trunk}mtp_block.{rest}")

ATTENTION = (
    writes("{trunk}embed_tokens.weight", Part.EMBED, -1),
    writes(_ATTENTION + "o_proj.weight", Part.ATTENTION, -2),
    writes(_ATTENTION + "o_proj.bias", Part.ATTENTION, -1),
    *rows(Role.READS_RESIDUAL, *(f"{_ATTENTION}{part}_proj.weight" for part in "qkv")),
    *rows(Role.INSIDE, *(f"{_ATTENTION}{part}_proj.bias" for part in "qkv")),
    *rows(Role.INSIDE, _ATTENTION + "q_norm.weight", _ATTENTION + "k_norm.weight", _ATTENTION + "rotary_emb.inv_freq"),
    *rows(Role.NORM, "{trunk}layers.{i}.input_layernorm.weight", "{trunk}layers.{i}.post_attention_layernorm.weight"),
    *rows(Role.NORM, "{trunk}norm.weight"),
    *rows(Role.UNEMBED, "lm_head.weight"),
    *DRAFTS,
)

MLP = (
    writes(_MLP + "down_proj.weight", Part.MLP, -2),
    writes(_MLP + "down_proj.bias", Part.MLP, -1),
    *rows(Role.READS_RESIDUAL, _MLP + "gate_proj.weight", _MLP + "up_proj.weight"),
    *rows(Role.INSIDE, _MLP + "gate_proj.bias", _MLP + "up_proj.bias"),
)

LLAMA = Family("llama", ("llama", "mistral", "qwen2", "qwen3"), ATTENTION + MLP)
