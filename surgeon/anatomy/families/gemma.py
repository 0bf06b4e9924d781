"""Gemma 2 and 3 (text): output norms behind attention and MLP, gains stored as w − 1, tied unless said otherwise."""

from surgeon.anatomy.family import Family, Part, Role, rows, writes

_BLOCK = "{trunk}layers.{i}."
_AFTER_ATTENTION = _BLOCK + "post_attention_layernorm.weight"
_AFTER_MLP = _BLOCK + "post_feedforward_layernorm.weight"

ROWS = (
    writes("{trunk}embed_tokens.weight", Part.EMBED, -1),
    writes(_BLOCK + "self_attn.o_proj.weight", Part.ATTENTION, -2, _AFTER_ATTENTION),
    writes(_BLOCK + "self_attn.o_proj.bias", Part.ATTENTION, -1, _AFTER_ATTENTION),
    writes(_BLOCK + "mlp.down_proj.weight", Part.MLP, -2, _AFTER_MLP),
    *rows(Role.READS_RESIDUAL, *(f"{_BLOCK}self_attn.{part}_proj.weight" for part in "qkv")),
    *rows(Role.READS_RESIDUAL, _BLOCK + "mlp.gate_proj.weight", _BLOCK + "mlp.up_proj.weight"),
    *rows(Role.INSIDE, *(f"{_BLOCK}self_attn.{part}_proj.bias" for part in "qkv")),
    *rows(Role.INSIDE, _BLOCK + "self_attn.q_norm.weight", _BLOCK + "self_attn.k_norm.weight"),
    *rows(Role.OUTPUT_NORM, _AFTER_ATTENTION, _AFTER_MLP),
    *rows(Role.NORM, _BLOCK + "input_layernorm.weight", _BLOCK + "pre_feedforward_layernorm.weight"),
    *rows(Role.NORM, "{trunk}norm.weight"),
    *rows(Role.UNEMBED, "lm_head.weight"),
)

GEMMA = Family("gemma", ("gemma2", "gemma3_text"), ROWS, gain=1.0, tied=True, mid="pre_feedforward_layernorm")
