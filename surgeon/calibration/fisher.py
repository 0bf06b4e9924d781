"""Measuring Fisher information: squared gradients of log p, a few blocks' at a time if memory asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.artifacts.artifact import metadata_of
from surgeon.artifacts.fisher import Fisher
from surgeon.calibration.gram import Listener
from surgeon.errors import RunError
from surgeon.runtime.load import Loaded
from surgeon.runtime.names import Views, offset_in, parameter_views
from surgeon.runtime.text import Encoded
from surgeon.store.tensor_file import TensorFile
from surgeon.tensors import TensorSpec


def measure_fisher(
    loaded: Loaded,
    encoded: Sequence[Encoded],
    path: Path,
    *,
    layers: int = 0,
    listener: Listener | None = None,
    **about: Any,
) -> Fisher:
    """Measure Σ (∂ log p(answer) / ∂θ)² / tokens for every weight, over the examples, and write it to one file.

    Scores of an answer's tokens are uncorrelated, so that this is the mean square a token. A text without a prompt is
    an answer from its second token on. `layers` is how many blocks are held at once (0: all), each lot taking passes of
    its own; gradients exist for that lot alone.
    """
    views, tokens = parameter_views(loaded), sum(len(one.ids) - _begin(one) for one in encoded)
    specs = {name: TensorSpec("F32", tuple(view.shape)) for name, view in views.items() if view.is_floating_point()}
    head = {**about, "tokens": tokens, "examples": len(encoded), "tensors": {name: [name, -1] for name in specs}}
    lots = list(_lots(loaded, layers))
    with TensorFile(path, specs, metadata_of(Fisher.kind, head)) as file:
        for number, lot in enumerate(lots):
            with _squares(lot) as sums:
                for at, one in enumerate(encoded, 1):
                    _log_probability(loaded, one).backward()
                    if listener is not None:
                        listener(number * len(encoded) + at, len(lots) * len(encoded))
            for name, value in _on_disk(views, sums):
                if not value.isfinite().all():
                    raise RunError(f"the gradient of {name} is not finite", hint="run the model in float32")
                file.write(name, memoryview((value / tokens).contiguous().cpu().numpy()))
    return Fisher.load(path)


def _begin(one: Encoded) -> int:
    """The first token that is scored: the answer's, or the second of a text."""
    return one.prompt if one.response else 1


def _log_probability(loaded: Loaded, one: Encoded) -> Tensor:
    """log p of the answer's tokens, given all before them."""
    ids, begin = torch.tensor([one.ids], device=loaded.device), _begin(one)
    logits = loaded.model(ids[:, :-1], use_cache=False, logits_to_keep=len(one.ids) - begin).logits[0]
    return logits.float().log_softmax(-1).gather(1, ids[0, begin:, None]).sum()


def _lots(loaded: Loaded, layers: int) -> Iterator[list[nn.Parameter]]:
    """The parameters, so many blocks' at a time, those outside the blocks with the last."""
    blocks = list(loaded.blocks)
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    outside = [parameter for parameter in loaded.model.parameters() if id(parameter) not in inside]
    step = layers or len(blocks)
    for first in range(0, len(blocks), step):
        lot = [parameter for block in blocks[first : first + step] for parameter in block.parameters()]
        yield lot + (outside if first + step >= len(blocks) else [])


@contextmanager
def _squares(lot: Sequence[nn.Parameter]) -> Iterator[Mapping[nn.Parameter, Tensor]]:
    """Σ (gradient)² of each parameter over the backward passes made inside; no gradient is kept."""
    sums = {parameter: torch.zeros_like(parameter, dtype=torch.float32) for parameter in lot}

    def square(parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        sums[parameter].add_(parameter.grad.float().square())
        parameter.grad = None

    hooks: list[Any] = []
    try:
        for parameter in lot:
            parameter.requires_grad_(True)
            hooks.append(parameter.register_post_accumulate_grad_hook(square))
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in lot:
            parameter.requires_grad_(False)


def _on_disk(views: Views, sums: Mapping[nn.Parameter, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The sums by the tensors on disk: each lies in its parameter's sum as it lies in the parameter."""
    for parameter, whole in sums.items():
        for name, view in views.items():
            offset = offset_in(view, parameter)
            if offset is not None:
                yield name, whole.as_strided(view.shape, view.stride(), offset)
