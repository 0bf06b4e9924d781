"""The tiny chat model of tests/data, loaded once, and examples it was made for."""

from pathlib import Path

import pytest

from surgeon.directions.contrast import Contrast
from surgeon.directions.examples import Example
from surgeon.runtime.load import load

WORDS = "tree sun moon house car river stone bird lamp glass wind door".split()


@pytest.fixture(scope="session")
def loaded():
    return load(Path(__file__).parents[1] / "data/tiny/model", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def contrast():
    positive = tuple(Example({"prompt": f"Repeat the word {word}."}) for word in WORDS)
    return Contrast(positive, tuple(Example({"prompt": f"Say {word} to me, please"}) for word in WORDS[:9]))
