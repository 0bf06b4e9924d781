"""Checkpoints are loaded unaided by real servers, which give the tokens and log-probabilities that transformers gives.

`surgeon check --serve` is what compares. transformers and vLLM compute in float32 whatever the files hold; mlx_lm
computes in the dtype of the files, so it gets the merge written out in float32 by surgeon as well.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import surgeon
from surgeon.ship.servers.serve import serve_and_compare

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
COPY = """\
surgeon: 1
models: {{merged: {folder}}}
steps: {{copy: {{combine: merged}}}}
output: {{dtype: float32, shard_size: {shard_size}}}
"""


def python(server: str) -> str:
    """The interpreter whose environment holds a server: an environment variable's, else this one."""
    return os.environ.get("SURGEON_VLLM_PYTHON" if server == "vllm" else "SURGEON_E2E_PYTHON") or sys.executable


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


def served(folder: Path, server: str, **settings) -> None:
    report = surgeon.check(folder, serve=server, python=python(server), **settings)
    print(f"\n{report.explain()}")
    assert report.exit_code == 0
    assert report.live is not None and sum(row.tokens for row in report.live.rows) > 40


def test_another_model_is_told_from_the_merge(smollm2: Path, merged_model: Path):
    found = serve_and_compare(merged_model, "transformers", python=python("transformers"), model=smollm2)
    assert not found.same
    assert found.rows[0].wrong


@pytest.mark.parametrize("layout", ["merged_model", "shards"])
def test_transformers_serves_the_tokens_of_the_reference(layout: str, request: pytest.FixtureRequest):
    served(request.getfixturevalue(layout), "transformers")


@pytest.mark.parametrize("layout", ["merged_model", "one_file", "shards"])
def test_mlx_serves_the_tokens_of_the_reference(layout: str, request: pytest.FixtureRequest):
    served(request.getfixturevalue(layout), "mlx")


@pytest.mark.parametrize("layout", ["merged_model", "shards"])
def test_vllm_serves_the_tokens_of_the_reference(layout: str, request: pytest.FixtureRequest):
    served(request.getfixturevalue(layout), "vllm")


def test_an_adapter_on_its_base_is_the_merged_model_in_vllm(smollm2: Path, tmp_path: Path):
    adapter = ROOT / "recipes" / "adapters" / "json"
    surgeon.apply(surgeon.open(smollm2) + 1.0 * surgeon.open(adapter), tmp_path / "out", dtype="float32")
    served(tmp_path / "out", "vllm", base=smollm2, adapter=adapter)
