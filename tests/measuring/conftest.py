"""Toys in float32 and bfloat16, made once."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from measuring_toys import Toy


@pytest.fixture(scope="session", autouse=True)
def quiet():
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session", params=["float32", "bfloat16"])
def toy(request, tmp_path_factory):
    return Toy(tmp_path_factory.mktemp(request.param), getattr(torch, request.param))


@pytest.fixture(scope="session")
def toy32(tmp_path_factory):
    return Toy(tmp_path_factory.mktemp("toy32"), torch.float32)


@pytest.fixture(scope="session")
def toy16(tmp_path_factory):
    return Toy(tmp_path_factory.mktemp("toy16"), torch.bfloat16)
