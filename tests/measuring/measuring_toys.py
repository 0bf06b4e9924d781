"""A toy Llama with a real PEFT adapter."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import surgeon


def llama(seed=0, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | changes)))


def adapt(model, folder, alpha=8, dtype=torch.float32, size=0.02):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj", "o_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=size if "lora_B" in name else 0.1)
            parameter.data = parameter.data.to(dtype)
    adapted.save_pretrained(folder)


def peft_merges(base, adapter, folder, dtype, cast=True):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    merged = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=cast).merge_and_unload()
    merged.save_pretrained(folder)


class Toy:
    """base, adapter, and what peft made of them, in one dtype."""

    def __init__(self, folder, dtype):
        self.folder, self.dtype = folder, dtype
        self.base, self.adapter, self.merged = folder / "base", folder / "style", folder / "merged"
        llama().to(dtype).save_pretrained(self.base)
        adapt(llama(), self.adapter)
        peft_merges(self.base, self.adapter, self.merged, dtype)

    @property
    def expr(self):
        return surgeon.open(self.base) + 1 * surgeon.open(self.adapter)

    def spoilt(self, tmp_path, change):
        """A copy of peft's correct result with its tensors changed in place by `change(tensors, base)`."""
        return spoil(self.merged, tmp_path / "spoilt", lambda tensors: change(tensors, self.tensors(self.base)))

    @staticmethod
    def tensors(folder):
        return load_file(Path(folder) / "model.safetensors")


def spoil(folder, copy, change):
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, copy / "model.safetensors", {"format": "pt"}
    )
    return copy


def edit_json(path, **changes):
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps(value))
