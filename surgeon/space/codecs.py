"""Weights packed several numbers to a byte, unpacked by the libraries whose formats these are."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from surgeon.space.kernels import Call, Kernel, register_kernels


class Unpacking(Kernel):
    """A weight from its parts, all of them whole inputs; what they are called stands in the setting ``leaves``.

    Integers come as floats wide enough to hold them, and are made integers again.
    """

    blocks = "whole"

    @override
    def __call__(self, stack: Tensor, call: Call) -> Tensor:
        parts = dict(zip(call.settings["leaves"], call.wholes, strict=True))
        if stack.device.type == "meta":  # a dry run; what the codecs make on the way is as large again, twice
            return torch.empty(3, *call.block.shape, dtype=torch.float32, device="meta")[0]
        return self.weight(parts, {**call.settings, "shape": call.block.shape}).float()

    @abstractmethod
    def weight(self, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
        """The weight, in the shape that is declared for it."""


class Mxfp4(Unpacking):
    """gpt-oss's experts, by transformers: [expert, out, groups, 16] bytes → [expert, in, out]."""

    @override
    def weight(self, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        blocks, exponents = (parts[leaf].to(torch.uint8) for leaf in ("_blocks", "_scales"))
        return convert_moe_packed_tensors(blocks, exponents, dtype=torch.float32)


class Compressed(Unpacking):
    """compressed-tensors' own formats, by its compressors."""

    @override
    def weight(self, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme

        integers = {"weight_zero_point": torch.int32, "weight_shape": torch.int64, "weight_g_idx": torch.int32}
        integers["weight_packed"] = torch.uint8 if "nvfp4" in settings["format"] else torch.int32
        given: dict[str, Any] = {leaf: part.to(integers.get(leaf, torch.float32)) for leaf, part in parts.items()}
        shape = given.pop("weight_shape", torch.zeros(1))
        if shape.any() and tuple(shape.tolist()) != settings["shape"]:  # all zeros in a dry run
            raise ValueError(f"its weight_shape says {shape.tolist()}, its numbers are {list(settings['shape'])}")
        given["weight_shape"] = torch.Size(settings["shape"])
        compressor = BaseCompressor.get_value_from_registry(settings["format"])
        scheme = QuantizationScheme.model_validate(json.loads(settings["scheme"]))
        weight = compressor.decompress(given, scheme)["weight"]
        assert weight is not None
        return weight


class Awq(Unpacking):
    """AutoAWQ's GEMM layout, unpacked and put in order by compressed-tensors' converter: qweight [in, out / 8]."""

    @override
    def weight(self, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
        from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter as Converter

        packed, zeros = (parts[leaf].to(torch.int32) if leaf in parts else None for leaf in ("qweight", "qzeros"))
        assert packed is not None
        numbers, middle = Converter.reverse_awq_order(*Converter.unpack_awq(packed, zeros, 4), 4)
        size, steps = settings["group"], parts["scales"].float()
        numbers = (numbers & 15).float()
        middle = (middle & 15).float() if middle is not None else torch.full_like(steps, 8.0)
        size = len(numbers) if size == -1 else size
        offset, scale = (tensor.repeat_interleave(size, 0) for tensor in (middle, steps))
        return ((numbers - offset) * scale).T


register_kernels("codec", {"mxfp4": Mxfp4(), "compressed": Compressed(), "awq": Awq()}.__getitem__)
