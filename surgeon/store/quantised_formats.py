"""The formats of quantised checkpoints, by `quant_method`: where a weight's parts lie and what can be done with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from surgeon.store.header import Stored
from surgeon.store.quantised import Packed, Quantised, module_of, read_dtype, settings_of
from surgeon.tensors import TensorSpec

Tensors = Mapping[str, Stored]

_FOUR_BITS = "packing it again in 4 bit would bring back a sixth to a third of what an edit takes away"
_FULL = "write the result in full: output: {dequantize: true}, or --dequantize"
_ELSEWHERE = "start from the model before it was quantised, or dequantise it where that library runs"
_SCALES = ("F32", "BF16", "F16", "F8_E8M0")


def quantised(config: Mapping[str, Any], tensors: Tensors) -> Quantised | None:
    """How the weights are quantised; None where the config does not say that they are."""
    about = settings_of(config)
    if about is None:
        return None
    method = str(about.get("quant_method", about.get("format", "unknown"))).lower()
    reader = {"fp8": _fp8, "compressed-tensors": _compressed, "mxfp4": _mxfp4, "awq": _awq}.get(method)
    if reader is not None:
        return reader(about, tensors, read_dtype(config))
    return _refused(method, about)


def _fp8(about: Mapping[str, Any], tensors: Tensors, dtype: str) -> Quantised:
    """DeepSeek's and Qwen's: one scale a block, `weight_scale_inv`, or (without weight_block_size) one a tensor."""
    block = tuple(about.get("weight_block_size") or ())
    power = str(about.get("scale_fmt") or "").lower() == "ue8m0"
    name = f"FP8 in blocks of {' × '.join(map(str, block))}" if block else "FP8"
    return _scaled(name, tensors, dtype, ("_scale_inv", "_scale"), block, power)


def _compressed(about: Mapping[str, Any], tensors: Tensors, dtype: str) -> Quantised:
    """compressed-tensors: FP8 is read here, what packs several numbers in one by its own codecs."""
    groups = [group for group in (about.get("config_groups") or {}).values() if isinstance(group, dict)]
    weights = [group["weights"] for group in groups if isinstance(group.get("weights"), dict)]
    formats = sorted({str(group.get("format") or about.get("format")) for group in groups})
    called = f"compressed-tensors {', '.join(formats) or 'of no known format'}"
    if formats and all(one.get("type") == "float" and one.get("num_bits") == 8 for one in weights):
        block = tuple(next((one["block_structure"] for one in weights if one.get("block_structure")), ()))
        return _scaled(called, tensors, dtype, ("_scale",), block, power=False)
    if len(groups) != 1 or formats[0] not in ("pack-quantized", "nvfp4-pack-quantized"):
        return Quantised(called, unread="no codec for it is called from here", hint=_ELSEWHERE)
    if find_spec("compressed_tensors") is None:
        hint = "pip install 'model-surgeon[quant]'"
        return Quantised(called, unread="its codec comes with the package compressed-tensors", hint=hint)
    wide = 32 // int(weights[0]["num_bits"]) if formats[0] == "pack-quantized" else 2
    settings = ("format", formats[0]), ("scheme", json.dumps(groups[0], sort_keys=True))
    packed = {}
    for name, stored in tensors.items():
        if name.endswith("weight_packed"):
            weight, (rows, columns) = name.removesuffix("_packed"), stored.spec.shape
            leaves = ("weight_packed", "weight_scale", "weight_global_scale", "weight_shape", "weight_zero_point",
                      "weight_g_idx")  # fmt: skip
            spec = TensorSpec(dtype, (rows, columns * wide))
            packed[weight] = Packed(weight, spec, "codec:compressed", _parts(weight, leaves, tensors), settings)
    return Quantised(called, packed, once=_FOUR_BITS, hint=_FULL)


def _mxfp4(about: Mapping[str, Any], tensors: Tensors, dtype: str) -> Quantised:
    """gpt-oss: experts in MXFP4, [expert, out, groups, 16] bytes, read as transformers does: [expert, in, out]."""
    packed = {}
    for name, stored in tensors.items():
        weight = name.removesuffix("_blocks")
        if weight != name and f"{weight}_scales" in tensors and len(stored.spec.shape) == 4:
            experts, rows, groups, half = stored.spec.shape
            spec = TensorSpec(dtype, (experts, groups * half * 2, rows))
            packed[weight] = Packed(weight, spec, "codec:mxfp4", _parts(weight, ("_blocks", "_scales"), tensors))
    return Quantised("MXFP4", packed, once=_FOUR_BITS, hint=_FULL)


def _awq(about: Mapping[str, Any], tensors: Tensors, dtype: str) -> Quantised:
    """AutoAWQ's GEMM layout: qweight [in, out / 8]."""
    bits, version = about.get("bits", about.get("w_bit", 4)), str(about.get("version", "gemm")).lower()
    called = f"AWQ, {bits} bit, {version}"
    if bits != 4 or version != "gemm":
        return Quantised(called, unread="only the GEMM layout of 4 bit has a codec", hint=_ELSEWHERE)
    if find_spec("compressed_tensors") is None:
        hint = "pip install 'model-surgeon[quant]'"
        return Quantised(called, unread="its codec comes with the package compressed-tensors", hint=hint)
    settings = ("group", int(about.get("group_size", 128))), ("zeros", bool(about.get("zero_point", True)))
    packed = {}
    for name, stored in tensors.items():
        if name.endswith(".qweight"):
            weight, (columns, eighths) = f"{name.removesuffix('qweight')}weight", stored.spec.shape
            parts = _parts(weight, ("qweight", "qzeros", "scales"), tensors)
            packed[weight] = Packed(weight, TensorSpec(dtype, (eighths * 8, columns)), "codec:awq", parts, settings)
    return Quantised(called, packed, once=_FOUR_BITS, hint=_FULL)


def _refused(method: str, about: Mapping[str, Any]) -> Quantised:
    """What nothing here can read, and why."""
    if method == "gptq":
        called = f"GPTQ, {about.get('bits', '?')} bit"
        return Quantised(called, unread="unpacking it takes gptqmodel, a library for GPUs", hint=_ELSEWHERE)
    if method == "bitsandbytes":
        called = "bitsandbytes NF4" if about.get("load_in_4bit") else "bitsandbytes INT8"
        hint = "load it with transformers where bitsandbytes runs, then model.dequantize() and save_pretrained"
        return Quantised(called, unread="unpacking it takes bitsandbytes, a library for GPUs", hint=hint)
    if method == "modelopt":
        called = f"ModelOpt {about.get('quant_algo', '')}".strip()
        hint = "convert it to compressed-tensors first (its convert_checkpoint has a converter for ModelOpt)"
        return Quantised(called, unread="its layout is not read here", hint=hint)
    return Quantised(method, unread="this format is not known here", hint=_ELSEWHERE)


def _scaled(
    called: str, tensors: Tensors, dtype: str, suffixes: tuple[str, ...], block: tuple[int, ...], power: bool
) -> Quantised:
    """FP8 weights with scales beside them."""
    packed = {}
    for name, stored in tensors.items():
        if not stored.spec.dtype.startswith("F8_E4M3") or len(stored.spec.shape) < 2:
            continue
        scale = next((name + suffix for suffix in suffixes if name + suffix in tensors), "")
        if fault := _scale_fault(name, stored.spec, tensors.get(scale), suffixes[0], block):
            return Quantised(called, unread=fault, hint="fetch the checkpoint again, or look at it with `surgeon show`")
        own = _block(stored.spec.shape, tensors[scale].spec, block)
        leaves = (name.removeprefix(module_of(name)), scale.removeprefix(module_of(name)))
        settings = ("block", own), ("power", power or tensors[scale].spec.dtype == "F8_E8M0")
        spec = TensorSpec(dtype, stored.spec.shape)
        packed[name] = Packed(name, spec, "fp8:dequantise", _parts(name, leaves, tensors), settings)
    return Quantised(called, packed)


def _scale_fault(name: str, spec: TensorSpec, scale: Stored | None, suffix: str, block: tuple[int, ...]) -> str:
    if spec.dtype != "F8_E4M3":
        return f"{name} is {spec.dtype}, and F8_E4M3 is what is read"
    if scale is None:
        return f"{name} is {spec.dtype} and has no {name}{suffix}"
    if scale.spec.dtype not in _SCALES or _block(spec.shape, scale.spec, block) is None:
        return f"{name} {spec} has the scale {scale.spec}, which fits no layout declared in config.json"
    return ""


def _block(shape: tuple[int, ...], scale: TensorSpec, declared: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns that share a scale: a tensor's, a row's, or the declared block's; None where nothing fits."""
    *lead, rows, columns = shape
    if scale.count == 1 or scale.shape == (*lead, 1, 1):
        return rows, columns
    if scale.shape == (*lead, rows, 1):
        return 1, columns
    if len(declared) == 2 and scale.shape == (*lead, -(-rows // declared[0]), -(-columns // declared[1])):
        return int(declared[0]), int(declared[1])
    return None


def _parts(weight: str, leaves: tuple[str, ...], tensors: Tensors) -> tuple[tuple[str, Stored], ...]:
    return tuple(_found(module_of(weight), leaves, tensors))


def _found(module: str, leaves: tuple[str, ...], tensors: Tensors) -> Iterator[tuple[str, Stored]]:
    for leaf in leaves:
        if module + leaf in tensors:
            yield leaf, tensors[module + leaf]
