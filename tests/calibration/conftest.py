"""The tiny chat model of tests/data, its adapters and prompts that it was made for."""

from pathlib import Path

import pytest

from surgeon.calibration.samples import samples
from surgeon.runtime.load import load

TINY = Path(__file__).parents[1] / "data/tiny"
WORDS = "tree sun moon house car river".split()


@pytest.fixture
def loaded():
    return load(TINY / "model", dtype="float32", device="cpu")


@pytest.fixture
def encoded(loaded):
    return samples(loaded, [{"prompt": f"Repeat the word {word}."} for word in WORDS])
