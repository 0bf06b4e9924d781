"""GPT-2: Conv1D weights [in, out], biases everywhere, learned positions, tied unless the config says not."""

from surgeon.anatomy.family import Family, Part, Role, rows, writes

_BLOCK = "{trunk}h.{i}."

GPT2 = Family(
    "gpt2",
    ("gpt2",),
    (
        writes("{trunk}wte.weight", Part.EMBED, -1),
        writes("{trunk}wpe.weight", Part.EMBED, -1),
        writes(_BLOCK + "attn.c_proj.weight", Part.ATTENTION, -1),
        writes(_BLOCK + "attn.c_proj.bias", Part.ATTENTION, -1),
        writes(_BLOCK + "mlp.c_proj.weight", Part.MLP, -1),
        writes(_BLOCK + "mlp.c_proj.bias", Part.MLP, -1),
        *rows(Role.READS_RESIDUAL, _BLOCK + "attn.c_attn.weight", _BLOCK + "mlp.c_fc.weight", axis=-2),
        *rows(Role.INSIDE, _BLOCK + "attn.c_attn.bias", _BLOCK + "mlp.c_fc.bias"),
        *rows(Role.INSIDE, _BLOCK + "attn.bias", _BLOCK + "attn.masked_bias"),
        *rows(Role.NORM, *(f"{_BLOCK}ln_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias"))),
        *rows(Role.NORM, "{trunk}ln_f.weight", "{trunk}ln_f.bias"),
        *rows(Role.UNEMBED, "lm_head.weight"),
    ),
    trunks=("transformer.", ""),
    width="n_embd",
    tied=True,
    blocks="h",
    mid="ln_2",
    embed="{trunk}wte.weight",
)
