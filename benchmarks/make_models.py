"""Make what the benchmark runs on: three checkpoints of 1.1 B parameters, adapters, and three that are headers only.

    python benchmarks/make_models.py DIR

The weights are random, of TinyLlama-1.1B's shape in bfloat16: a base, and two fine-tunes that are the base plus small
changes. All three are written side by side, block by block, so that no model is ever held in memory. A second family
has two blocks of that shape, for merges that decompose every matrix.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

Shapes = dict[str, tuple[int, ...]]

LAYERS, WIDTH, HIDDEN, HEADS, KV_HEADS, VOCABULARY = 22, 2048, 5632, 32, 4, 32000
KV_WIDTH = WIDTH // HEADS * KV_HEADS
PROJECTIONS: Shapes = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KV_WIDTH, WIDTH),
    "self_attn.v_proj": (KV_WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (HIDDEN, WIDTH),
    "mlp.up_proj": (HIDDEN, WIDTH),
    "mlp.down_proj": (WIDTH, HIDDEN),
}
MODELS = ("base", "math", "code")
ADAPTERS = ("adapter", "other")
SHORT = "short-"
SHARD_BYTES = 1_000_000_000
BLOCK = 1 << 22
BASE_STD, CHANGE_STD = 0.02, 1e-3
RANK, ALPHA = 16, 32
DIRECTION = "direction.safetensors"
SHORT_LAYERS, SHORT_VOCABULARY = 2, 32
HEADER_LAYERS, HEADER_EXPERTS, HEADER_WIDTH = 40, 165, 32


def llama_shapes(layers: int = LAYERS, vocabulary: int = VOCABULARY) -> Shapes:
    """Names and shapes of the 1.1 B checkpoint, in the order of the model, or of a part of it."""
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, WIDTH)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{name}.weight": shape for name, shape in PROJECTIONS.items()}
        shapes |= {f"{prefix}{norm}.weight": (WIDTH,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return shapes | {"model.norm.weight": (WIDTH,), "lm_head.weight": (vocabulary, WIDTH)}


def expert_shapes() -> Shapes:
    """Names and shapes of a mixture of experts with some 20 000 small tensors."""
    square = (HEADER_WIDTH, HEADER_WIDTH)
    shapes: Shapes = {"model.embed_tokens.weight": square}
    for layer in range(HEADER_LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": square for name in "qkvo"}
        shapes |= {
            f"{prefix}{norm}.weight": (HEADER_WIDTH,) for norm in ("input_layernorm", "post_attention_layernorm")
        }
        shapes[f"{prefix}mlp.gate.weight"] = (HEADER_EXPERTS, HEADER_WIDTH)
        for expert in range(HEADER_EXPERTS):
            shapes |= {f"{prefix}mlp.experts.{expert}.{name}_proj.weight": square for name in ("gate", "up", "down")}
    return shapes | {"model.norm.weight": (HEADER_WIDTH,), "lm_head.weight": square}


def llama_config(layers: int = LAYERS, vocabulary: int = VOCABULARY) -> dict[str, object]:
    """A config.json with which LlamaForCausalLM loads the checkpoint."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }


def adapter_shapes() -> Shapes:
    """Names and shapes of a PEFT LoRA adapter on every projection."""
    shapes: Shapes = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in PROJECTIONS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            shapes[f"{prefix}.lora_A.weight"] = (RANK, columns)
            shapes[f"{prefix}.lora_B.weight"] = (rows, RANK)
    return shapes


def adapter_config(base: Path) -> dict[str, object]:
    """The adapter_config.json that goes with `adapter_shapes`."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
        "target_modules": [name.split(".")[1] for name in PROJECTIONS],
    }


def header(shapes: Shapes) -> bytes:
    """The safetensors header of a file that holds these tensors in this order, in bfloat16."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        end = start + 2 * prod(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def shards(shapes: Shapes, limit: int) -> dict[str, Shapes]:
    """File name → its tensors: cut in order, each file at most `limit` bytes."""
    parts: list[Shapes] = [{}]
    size = 0
    for name, shape in shapes.items():
        size += 2 * prod(shape)
        if parts[-1] and size > limit:
            parts.append({})
            size = 2 * prod(shape)
        parts[-1][name] = shape
    return {f"model-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, 1)}


def write_side_files(folder: Path, config: dict[str, object], files: dict[str, Shapes]) -> None:
    """Write config.json and the shard index."""
    total = sum(2 * prod(shape) for part in files.values() for shape in part.values())
    weight_map = {name: file for file, part in files.items() for name in part}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def blocks(shape: tuple[int, ...]) -> Iterator[int]:
    """The lengths in which a tensor is drawn."""
    left = prod(shape)
    while left:
        yield min(left, BLOCK)
        left -= min(left, BLOCK)


def relatives(count: int, centre: float, random: torch.Generator) -> list[torch.Tensor]:
    """One block of the base and of each fine-tune, in bfloat16."""
    base = torch.randn(count, generator=random).mul_(BASE_STD).add_(centre).bfloat16()
    changes = (torch.randn(count, generator=random).mul_(CHANGE_STD) for _ in MODELS[1:])
    return [base, *(change.add_(base).bfloat16() for change in changes)]


def raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a bfloat16 tensor, not copied."""
    return tensor.view(torch.int16).numpy().data


def write_family(root: Path, prefix: str = "", layers: int = LAYERS, vocabulary: int = VOCABULARY) -> None:
    """Write the base and its fine-tunes, shard by shard, all at once."""
    random = torch.Generator().manual_seed(0)
    files = shards(llama_shapes(layers, vocabulary), SHARD_BYTES)
    folders = [root / f"{prefix}{model}" for model in MODELS]
    for folder in folders:
        folder.mkdir()
        write_side_files(folder, llama_config(layers, vocabulary), files)
    for file, part in files.items():
        with ExitStack() as stack:
            outputs = [stack.enter_context(open(folder / file, "wb")) for folder in folders]
            for output in outputs:
                output.write(header(part))
            for name, shape in part.items():
                for count in blocks(shape):
                    for output, block in zip(outputs, relatives(count, float("norm" in name), random), strict=True):
                        output.write(raw(block))


def write_adapter(folder: Path, base: Path, seed: int) -> None:
    """Write a LoRA adapter: both factors random, so that every projection changes."""
    random = torch.Generator().manual_seed(seed)
    shapes = adapter_shapes()
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config(base), indent=2) + "\n")
    with open(folder / "adapter_model.safetensors", "wb") as output:
        output.write(header(shapes))
        for shape in shapes.values():
            output.write(raw(torch.randn(prod(shape), generator=random).mul_(BASE_STD).bfloat16()))


def direction() -> torch.Tensor:
    """A random unit vector of the residual stream, the same each time."""
    row = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
    return row / torch.linalg.vector_norm(row)


def write_direction(path: Path) -> None:
    """Write it as a direction file, named by the residual point it would have been measured at."""
    head = {"kind": "direction", "about": {"at": f"block.{LAYERS // 2}"}}
    save_file({f"block.{LAYERS // 2}": direction()[None]}, path, {"surgeon": json.dumps(head)})


def write_headers(folder: Path) -> None:
    """Write a checkpoint whose header is real and whose data is a hole in a sparse file."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": HEADER_WIDTH,
        "moe_intermediate_size": HEADER_WIDTH,
        "num_hidden_layers": HEADER_LAYERS,
        "num_experts": HEADER_EXPERTS,
        "vocab_size": HEADER_WIDTH,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    shapes = expert_shapes()
    folder.mkdir()
    files = shards(shapes, 2 * sum(prod(shape) for shape in shapes.values()) // 4)
    write_side_files(folder, config, files)
    for file, part in files.items():
        with open(folder / file, "wb") as output:
            size = output.write(header(part)) + sum(2 * prod(shape) for shape in part.values())
            output.truncate(size)


def make_models(work: Path) -> Path:
    """Return the folder of models in `work`, making it first where it is not there yet."""
    done = work / "models"
    work.mkdir(parents=True, exist_ok=True)
    write_direction(work / DIRECTION)
    if done.is_dir():
        return done
    part = work / "models.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    torch.set_num_threads(1)
    write_family(part)
    write_family(part, SHORT, SHORT_LAYERS, SHORT_VOCABULARY)
    for seed, adapter in enumerate(ADAPTERS, 1):
        write_adapter(part / adapter, done / "base", seed)
    for model in MODELS:
        write_headers(part / f"headers-{model}")
    os.sync()
    part.rename(done)
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder that receives models/, 7 GB")
    print(make_models(parser.parse_args().work))
