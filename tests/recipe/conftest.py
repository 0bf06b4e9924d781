"""What the tests of recipes share."""

from pathlib import Path

import pytest

from surgeon.errors import RecipeError
from surgeon.recipe import parse

VALID = """\
surgeon: 1
models:
  base: org/base
  math: someone/math@main
  code: ./checkpoints/code
  style: {model: ./adapters/style, base_model: base}
steps:
  merged:
    merge: ties
    base_model: base
    models:
      math: {weight: 0.6, density: [0.2, 0.8]}
      code: {weight: 0.4}
    density: 0.5
    lambda: [{targets: "*mlp*", value: 0.5}, {value: 0.2}]
  final:
    combine: merged + s * style - 0.1*(math - base)
    schedules: {s: [0.2, 0.8]}
output: {dtype: bfloat16, shard_size: 5GB}
"""

EDITED = """\
surgeon: 1
models:
  base: org/base
  math: someone/math
  code: ./checkpoints/code
  style: ./adapters/style
directions:
  sycophancy:
    fit: mean_difference
    model: merged
    positive: ./contrast/sycophantic.jsonl
    negative: ./contrast/candid.jsonl
    neutral: ./neutral.jsonl
    position: first:3
    at: block.14
    guard: false
  hedging: ./directions/hedging.safetensors
steps:
  merged:
    merge: ties
    base_model: base
    models: {math: {weight: 0.6, density: [0.2, 0.8]}, code: {weight: 0.4}}
  styled:
    combine: merged + 0.5 * style
  edited:
    edit: ablate
    of: styled
    directions: [sycophancy, hedging]
    strength: [0.5, 1]
    layers: 8..24
    writers: attention
output: {dtype: bfloat16, rounding: compensated}
"""


@pytest.fixture
def edited():
    """Three steps: a merge, an adapter added, an edit along two directions, one measured on the merge."""
    return EDITED


@pytest.fixture(scope="session")
def texts():
    """Every form of a native recipe, for property tests, which take no fixture made for each test."""
    return VALID, EDITED


@pytest.fixture
def valid():
    return VALID


@pytest.fixture
def read():
    """Reads a text as the recipe `r.yaml` in /home/recipes."""

    def reading(text, **overrides):
        return parse(text, file="r.yaml", folder=Path("/home/recipes"), overrides=overrides.pop("set", {}))

    return reading


@pytest.fixture
def faults(read):
    """The faults of a text, each as (line, column, message and hint)."""

    def found(text, **overrides):
        with pytest.raises(RecipeError) as refused:
            read(text, **overrides)
        return [(f.origin.line, f.origin.column, f"{f.message} | {f.hint}") for f in refused.value.faults]

    return found
