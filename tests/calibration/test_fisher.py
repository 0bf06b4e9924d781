"""The Fisher file holds the mean square of ∂ log p / ∂θ, whatever the lots, and the model is left as it was."""

from pathlib import Path

import pytest
import torch

from surgeon.calibration.fisher import measure_fisher


@pytest.mark.parametrize("layers", [0, 1])
def test_it_is_the_mean_square_gradient(loaded, encoded, tmp_path: Path, layers: int):
    found = measure_fisher(loaded, encoded[:3], tmp_path / "f.safetensors", layers=layers)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    names = ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
    watched = {name: loaded.model.get_parameter(name).requires_grad_(True) for name in names}
    sums = {name: torch.zeros_like(value) for name, value in watched.items()}
    for one in encoded[:3]:
        ids = torch.tensor([one.ids])
        logits = loaded.model(ids).logits[0, one.prompt - 1 : -1].log_softmax(-1)
        score = logits.gather(1, ids[0, one.prompt :, None]).sum()
        for name, slope in zip(names, torch.autograd.grad(score, list(watched.values())), strict=True):
            sums[name] += slope.square()
    tokens = sum(len(one.response) for one in encoded[:3])
    assert found.about["tokens"] == tokens
    for name in names:
        torch.testing.assert_close(found.tensors[name], (sums[name] / tokens).detach(), rtol=1e-4, atol=1e-9)
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
