"""A running vLLM is switched to edited weights and to an adapter by `push-weights`, and back."""

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import surgeon
from surgeon.ship.servers.comparison import Reference
from surgeon.ship.servers.engines import engine_named
from surgeon.ship.servers.process import running
from surgeon.testing.toys import read_checkpoint

pytestmark = pytest.mark.e2e

ADAPTER = Path(__file__).resolve().parents[2] / "recipes" / "adapters" / "json"
COUNT = 12
DEVELOPER = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


@pytest.fixture(scope="module")
def adapted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapted") / "out"
    surgeon.apply(surgeon.open(smollm2) + 1.0 * surgeon.open(ADAPTER), out, dtype="float32")
    return out


@pytest.fixture(scope="module")
def patch(smollm2: Path, adapted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The edited tensors alone."""
    before = read_checkpoint(smollm2)
    edited = {n: t for n, t in read_checkpoint(adapted).items() if not t.equal(before[n].to(t.dtype))}
    assert 0 < len(edited) < len(before)
    folder = tmp_path_factory.mktemp("patch")
    save_file(edited, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_vllm_is_switched_and_back_while_it_runs(smollm2: Path, adapted: Path, patch: Path, tmp_path: Path):
    engine, python = engine_named("vllm"), os.environ.get("SURGEON_VLLM_PYTHON") or sys.executable
    engine.require(python)
    base, other = Reference(smollm2), Reference(adapted)
    lora = ["--enable-lora", "--max-lora-rank", "8"]
    command = [*engine.line(python, smollm2, "float32", None, 1), *lora]
    with running("vllm", command, {**engine.settings, **DEVELOPER}) as server:

        def wrong(reference: Reference, name: str = "served") -> list[str]:
            answers = [engine.answer(server, name, prompt, COUNT) for prompt in reference.prompts()]
            return [row.wrong for row in reference.compare(answers, COUNT, 0.02) if row.wrong]

        assert wrong(base) == [] and wrong(other) != []
        pushed = surgeon.push_weights(server.url, ADAPTER, name="json")
        assert pushed.models == ["served", "json"] and pushed.notes == [] and pushed.changed is False
        assert wrong(other, "json") == [] and wrong(base) == []
        assert surgeon.push_weights(server.url, patch).changed is True
        assert wrong(other) == []
        assert surgeon.push_weights(server.url, smollm2).changed is True
        assert wrong(base) == []
        with pytest.raises(surgeon.RunError, match="it still serves the old weights"):
            surgeon.push_weights(server.url, ADAPTER, name="lost", remote_path="/nowhere/adapter")
        stray = tmp_path / "stray"
        stray.mkdir()
        save_file({"stray.weight": torch.zeros(4)}, stray / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(surgeon.MismatchError, match="stray"):
            surgeon.push_weights(server.url, stray)
        assert wrong(base) == []
        with pytest.raises(surgeon.RunError, match="it no longer"):
            surgeon.push_weights(server.url, patch, remote_path=str(stray))
