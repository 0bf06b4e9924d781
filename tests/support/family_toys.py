"""One toy model of every family with a table, built by transformers itself, and what its modules write."""

import functools
import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from surgeon.engine.run import run
from surgeon.planning.options import Options
from surgeon.planning.plan import build
from surgeon.runtime.load import load
from surgeon.runtime.names import parameter_views
from surgeon.space.output import Output, Recipe
from surgeon.store.writer import FolderWriter

WIDTH = 32
_USUAL = {
    "vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
_GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 8}
_MOE = {"num_experts_per_tok": 2}
_QWEN3_MOE = {"num_experts": 4, "moe_intermediate_size": 24, **_MOE}
_GPT2 = {"vocab_size": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
         "eos_token_id": 2}  # fmt: skip

_EYES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
         "patch_size": 4}  # fmt: skip
_QWEN_EYES = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 1}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
_DEEPSEEK = {"n_routed_experts": 4, "moe_intermediate_size": 24, "n_group": 2, "topk_group": 1, "n_shared_experts": 1,
             "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4,
             "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 4,
             "num_key_value_heads": 4, **_MOE}  # fmt: skip

#: The token that an image's features take the place of; none of TOKENS.
IMAGE = 2

#: Toy → its config's class and what is special in it. "fused" toys hold their experts on disk as in memory.
TOYS = {
    "llama": ("LlamaConfig", {}),
    "llama with biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", {"sliding_window": 8}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "gemma2": ("Gemma2Config", _GEMMA),
    "gemma3": ("Gemma3TextConfig", _GEMMA),
    "gpt2": ("GPT2Config", _GPT2),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, **_MOE}),
    "mixtral fused": ("MixtralConfig", {"num_local_experts": 4, **_MOE}),
    "qwen3_moe": ("Qwen3MoeConfig", _QWEN3_MOE),
    "qwen3_moe fused": ("Qwen3MoeConfig", _QWEN3_MOE),
    "qwen2_moe": ("Qwen2MoeConfig", {**_QWEN3_MOE, "shared_expert_intermediate_size": 24}),
    "deepseek_v3": ("DeepseekV3Config", _DEEPSEEK),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, "sliding_window": 8, **_MOE}),
    "gemma3 that sees": (
        "Gemma3Config",
        {"text": _GEMMA, "vision_config": _EYES, "mm_tokens_per_image": 4, "image_token_index": IMAGE},
    ),
    "llava": (
        "LlavaConfig",
        {
            "text": {"model_type": "llama"},
            "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **_EYES},
            "image_token_index": IMAGE,
        },
    ),
    "qwen2_vl": (
        "Qwen2VLConfig",
        {
            "text": _MROPE,
            "vision_config": {"embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 2, **_QWEN_EYES},
            "image_token_id": IMAGE,
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        {
            "text": _MROPE,
            "vision_config": {
                "hidden_size": 16,
                "out_hidden_size": WIDTH,
                "intermediate_size": 24,
                "window_size": 16,
                "fullatt_block_indexes": [0],
                **_QWEN_EYES,
            },
            "image_token_id": IMAGE,
        },
    ),
    "qwen3_moe with a dense layer": ("Qwen3MoeConfig", {**_QWEN3_MOE, "mlp_only_layers": [0]}),
}

TOKENS = torch.randint(3, 64, (3, 12), generator=torch.Generator().manual_seed(5))


def toy(folder: Path, name: str, tied: bool = False, seed: int = 0) -> Path:
    """A random toy, norms and biases too, saved as transformers saves it (fused: by its names in memory)."""
    model = _class(name).from_config(_config(name, tied))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        for norm_name, parameter in model.named_parameters():
            if norm_name.endswith("weight") and ("norm" in norm_name or ".ln_" in norm_name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    if name.endswith("fused"):
        tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
        if tied:
            del tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _config(name: str, tied: bool):
    kind, special = TOYS[name]
    usual = {} if kind == "GPT2Config" else _USUAL
    if "text" in special:
        text = {**usual, **special["text"], "tie_word_embeddings": tied}
        usual, special = {"text_config": text}, {key: value for key, value in special.items() if key != "text"}
    return getattr(transformers, kind)(**{**usual, **special}, tie_word_embeddings=tied)


def _class(name: str):
    seeing = "vision_config" in TOYS[name][1]
    return transformers.AutoModelForImageTextToText if seeing else transformers.AutoModelForCausalLM


def written(expr, folder: Path, *, dtype: str | None = None) -> Path:
    """What `expr` gives, as a folder that loads."""
    plan = build(Recipe(expr, Output(dtype=dtype)), Options(threads=1, device="cpu"))
    writer = FolderWriter(folder, plan.layout)
    writer.create()
    run(plan, writer)
    writer.close()
    config = {**plan.files_from.config, **plan.config}
    (folder / "config.json").write_text(json.dumps(config))
    generation = plan.files_from.root / "generation_config.json"
    if generation.exists():
        shutil.copy(generation, folder)
    return folder


def loaded(folder: Path):
    return load(folder, device="cpu")


def writing_modules(model):
    """Module of the language model → (module, the place of what it writes with), by the table and where those lie."""
    views = parameter_views(model)
    owners = {
        parameter.untyped_storage().data_ptr(): (module_name, module)
        for module_name, module in model.trunk.named_modules()
        for parameter in module.parameters(recurse=False)
    }
    found = {}
    for name, place in model.anatomy.writers().items():
        # A projector is not part of the language model.
        if held := owners.get(views[name].untyped_storage().data_ptr()):
            found[held[0]] = held[1], place
    return found


def gains(model, place):
    """The gain between a writer and the stream, float64 [d]."""
    views, family = parameter_views(model), model.anatomy.family
    folded = (views[norm].double() + family.gain for norm in place.norms)
    return functools.reduce(torch.mul, folded, torch.ones(WIDTH, dtype=torch.float64))
