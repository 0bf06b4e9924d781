"""A merged checkpoint is loaded unaided by real servers, which give the token ids that transformers gives.

The reference is computed in float32 from the merge as written (bf16). transformers and vLLM compute in float32 whatever
the files hold; mlx_lm computes in the dtype of the files, so it gets the merge written out in float32 by surgeon.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.servers import (
    MAX_TOKENS,
    Greedy,
    disagreements,
    reference,
    serve_mlx,
    serve_transformers,
    serve_vllm,
    server_python,
)

pytestmark = pytest.mark.e2e

COPY = """\
surgeon: 1
models: {{merged: {folder}}}
steps: {{copy: {{combine: merged}}}}
output: {{dtype: float32, shard_size: {shard_size}}}
"""
# bf16 rounding moves logits by some tenths; below this lead either token may win.
CLEAR_LEAD = 0.5


@pytest.fixture(scope="session")
def expected(merged_model: Path) -> list[Greedy]:
    return reference(merged_model)


@pytest.fixture(scope="session")
def one_file(merged_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = in_float32(merged_model, tmp_path_factory.mktemp("one-file"), "5GB")
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]
    return folder


@pytest.fixture(scope="session")
def shards(merged_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = in_float32(merged_model, tmp_path_factory.mktemp("shards"), "200MB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    return folder


def in_float32(merged: Path, scratch: Path, shard_size: str) -> Path:
    recipe = scratch / "recipe.yaml"
    recipe.write_text(COPY.format(folder=merged.resolve(), shard_size=shard_size))
    command = [sys.executable, "-m", "surgeon_cli", "apply", str(recipe), "-o", str(scratch / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return scratch / "out"


def test_the_prompts_tell_the_merge_from_its_base(smollm2: Path, expected: list[Greedy]):
    assert [greedy.ids for greedy in reference(smollm2)] != [greedy.ids for greedy in expected]


@pytest.mark.parametrize("layout", ["merged_model", "shards"])
def test_transformers_serves_the_tokens_of_the_reference(
    layout: str, expected: list[Greedy], request: pytest.FixtureRequest
):
    with serve_transformers(server_python("SURGEON_E2E_PYTHON"), request.getfixturevalue(layout)) as server:
        assert disagreements(server, expected) == []


@pytest.mark.parametrize("layout", ["one_file", "shards"])
def test_mlx_serves_the_tokens_of_the_reference(layout: str, expected: list[Greedy], request: pytest.FixtureRequest):
    with serve_mlx(server_python("SURGEON_E2E_PYTHON"), request.getfixturevalue(layout)) as server:
        assert disagreements(server, expected) == []


def test_mlx_serves_the_merge_as_written(merged_model: Path, expected: list[Greedy]):
    with serve_mlx(server_python("SURGEON_E2E_PYTHON"), merged_model) as server:
        served = [server.complete(greedy.prompt, MAX_TOKENS) for greedy in expected]
    clear = [clear_start(greedy) for greedy in expected]
    assert [ids[: len(start)] for ids, start in zip(served, clear, strict=True)] == clear
    assert sum(map(len, clear)) > 0


@pytest.mark.parametrize("layout", ["merged_model", "shards"])
def test_vllm_serves_the_tokens_of_the_reference(layout: str, expected: list[Greedy], request: pytest.FixtureRequest):
    with serve_vllm(server_python("SURGEON_VLLM_PYTHON"), request.getfixturevalue(layout)) as server:
        assert disagreements(server, expected) == []


def clear_start(greedy: Greedy) -> list[int]:
    """The ids before the first step at which another token came close."""
    close = next((i for i, margin in enumerate(greedy.margins) if margin < CLEAR_LEAD), len(greedy.ids))
    return greedy.ids[:close]
