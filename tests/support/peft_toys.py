"""Toy models and real PEFT adapters of them, one for each feature of PEFT that changes the weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


def llama(tied=False, bias=False, heads=2):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=heads, tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2(tied=True):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=8, tie_word_embeddings=tied,
        bos_token_id=0, eos_token_id=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


ATTENTION = ["q_proj", "v_proj", "o_proj"]
CONV1D = ["c_attn", "c_fc", "c_proj"]

#: Feature → what LoraConfig gets, and how many tensors of the toy Llama it changes. PEFT matches `modules_to_save` with
#: the ends of names, so that "norm" is also the norms inside the layers.
LLAMA = {
    "plain": ({"target_modules": ATTENTION, "r": 4, "lora_alpha": 10}, 6),
    "one rank": ({"target_modules": ["down_proj"], "r": 1, "lora_alpha": 1}, 2),
    "rslora": ({"target_modules": ATTENTION, "r": 4, "lora_alpha": 10, "use_rslora": True}, 6),
    "patterns": (
        {
            "target_modules": [*ATTENTION, "up_proj"],
            "r": 4,
            "lora_alpha": 10,
            "rank_pattern": {
                "v_proj": 2,
                r"model.layers.1.mlp.up_proj": 7,
                r".*0\.self_attn\.o_proj": 3,
                r".*layers\.1\.self_attn\.[oq]_proj": 5,
            },
            "alpha_pattern": {r"^model\.layers\.(0|5)\..*": 1, "o_proj": 3.5, "layers.1": 77},
        },
        8,
    ),
    "patterns and rslora": (
        {
            "target_modules": ATTENTION,
            "r": 4,
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"q_proj": 5},
        },
        6,
    ),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"], "r": 3, "lora_alpha": 5}, 3),
    "head": ({"target_modules": ["lm_head", "q_proj"], "r": 3}, 3),
    "embedding and head": ({"target_modules": ["embed_tokens", "lm_head"], "r": 3}, 2),
    "modules to save": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}, 8),
    "module to save by path": ({"target_modules": ["q_proj"], "modules_to_save": ["layers.1.mlp", "embed_tokens"]}, 6),
    "bias all": ({"target_modules": ["q_proj"], "bias": "all"}, 2 + 2 * 7),
    "bias lora_only": ({"target_modules": ["q_proj", "up_proj"], "bias": "lora_only"}, 8),
    "dora": ({"target_modules": ATTENTION, "r": 4, "lora_alpha": 10, "use_dora": True}, 6),
    "dora rslora": ({"target_modules": ATTENTION, "r": 4, "lora_alpha": 10, "use_dora": True, "use_rslora": True}, 6),
    "dora embedding": ({"target_modules": ["embed_tokens", "q_proj"], "r": 4, "use_dora": True}, 3),
    "everything": (
        {
            "target_modules": ["q_proj", "embed_tokens"],
            "modules_to_save": ["norm"],
            "bias": "all",
            "use_dora": True,
            "use_rslora": True,
        },
        22,
    ),
    "some layers": ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, 1),
    "regular expression": ({"target_modules": r".*layers\.0\..*_proj"}, 7),
    "all linear": ({"target_modules": "all-linear", "exclude_modules": ["k_proj"]}, 12),
}

#: The same for the toy GPT-2, whose linear layers are stored as [in, out].
GPT2 = {
    "plain": ({"target_modules": CONV1D, "r": 4, "lora_alpha": 10, "fan_in_fan_out": True}, 8),
    "flag left out": ({"target_modules": ["c_attn", "c_proj"]}, 6),
    "square only": ({"target_modules": r".*attn\.c_proj", "fan_in_fan_out": True}, 2),
    "rslora": ({"target_modules": CONV1D, "r": 4, "lora_alpha": 10, "fan_in_fan_out": True, "use_rslora": True}, 8),
    "patterns": (
        {
            "target_modules": CONV1D,
            "fan_in_fan_out": True,
            "rank_pattern": {"c_fc": 2, r"transformer.h.1.attn.c_proj": 3},
            "alpha_pattern": {"c_attn": 5, "h.0": 77},
        },
        8,
    ),
    "dora": ({"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True, "use_rslora": True}, 6),
    "dora embedding": ({"target_modules": ["wte", "c_fc"], "fan_in_fan_out": True, "r": 4, "use_dora": True}, 3),
    "embedding": ({"target_modules": ["wte", "wpe", "c_attn"], "r": 3, "fan_in_fan_out": True}, 4),
    "bias all": ({"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}, 2 + 13),
    "bias lora_only": ({"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "lora_only"}, 4),
    "modules to save": ({"target_modules": ["c_attn"], "fan_in_fan_out": True, "modules_to_save": ["ln_f"]}, 4),
}


@dataclass
class Made:
    """A base and an adapter of it on disk, and what PEFT merges them to."""

    base: Path
    adapter: Path
    merged: torch.nn.Module

    @property
    def state(self):
        return {name: tensor.detach().clone() for name, tensor in self.merged.state_dict().items()}


def make(root, model, edit=None, seed=0, save_base=True, **config):
    """Save the base and an adapter of it with every trained tensor moved; `edit` then gets the adapter's folder."""
    if save_base:
        model.save_pretrained(root / "base")
    torch.manual_seed(seed)
    tuned = get_peft_model(model, LoraConfig(init_lora_weights=False, **config))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
            assert "lora" not in name or parameter.dtype == torch.float32
    tuned.save_pretrained(root / "adapter")
    if edit:
        edit(root / "adapter")
    return Made(root / "base", root / "adapter", tuned.merge_and_unload())


def loaded_by_peft(model, adapter):
    """What PEFT merges a model and an adapter's folder to."""
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


def store_as(dtype):
    """An `edit` that writes the adapter's tensors in another dtype."""

    def edit(folder):
        path = folder / "adapter_model.safetensors"
        save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})

    return edit
