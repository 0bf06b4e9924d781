"""Where arithmetic runs: the CPU or one accelerator."""

from __future__ import annotations

import torch

from surgeon.errors import RefusedError


def available() -> tuple[str, ...]:
    """The kinds of device this machine offers, best first."""
    kinds = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.backends.mps}
    return (*(kind for kind, module in kinds.items() if module.is_available()), "cpu")


def choose(name: str) -> torch.device:
    """The device a user names: auto, cpu, cuda[:N], xpu[:N] or mps. RefusedError when it is not there."""
    if name == "auto":
        return torch.device(available()[0])
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "xpu", "mps") or (index and not index.isdigit()):
        raise RefusedError(f"{name!r} is not a device", hint="use auto, cpu, cuda, cuda:N, xpu or mps")
    if kind not in available():
        raise RefusedError(f"there is no {kind} device here", hint=f"use one of {', '.join(available())}")
    if index and kind in ("cuda", "xpu") and int(index) >= getattr(torch, kind).device_count():
        raise RefusedError(f"there is no {name}: {getattr(torch, kind).device_count()} {kind} device(s) here")
    return torch.device(name)
