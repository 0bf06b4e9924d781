"""Random headers, indexes and recipes by the whole road: nothing but SurgeonError comes out."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import surgeon
from surgeon.store.header import read_header
from surgeon.testing.toys import write_checkpoint

pytestmark = pytest.mark.e2e

many = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))

numbers = st.one_of(st.integers(-4, 40), st.integers(), st.floats(), st.none(), st.booleans(), st.text(max_size=3))
entries = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "BF16", "I64", "F4", "BOOL", "F33", "", 3, None]),
            "shape": st.one_of(st.lists(numbers, max_size=3), numbers),
            "data_offsets": st.one_of(st.lists(numbers, max_size=3), numbers),
            "extra": numbers,
        },
    ),
    numbers,
    st.lists(numbers, max_size=2),
)
headers = st.dictionaries(st.text(max_size=5), entries, max_size=4)


def attempt(action) -> None:
    try:
        action()
    except surgeon.SurgeonError as error:
        assert str(error)


@many
@given(
    header=headers, metadata=st.one_of(st.none(), entries, headers), size=st.integers(0, 64), cut=st.integers(0, 300)
)
def test_headers(tmp_path_factory: pytest.TempPathFactory, header, metadata, size: int, cut: int):
    text = json.dumps(header | ({} if metadata is None else {"__metadata__": metadata})).encode()
    folder = tmp_path_factory.getbasetemp() / "headers"
    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors"
    path.write_bytes((len(text).to_bytes(8, "little") + text + bytes(size))[: cut + 100])
    attempt(lambda: read_header(path))
    attempt(lambda: surgeon.plan(surgeon.open(folder)))


@many
@given(data=st.binary(max_size=200), position=st.integers(0, 400))
def test_flipped_bytes_of_a_good_file(tmp_path_factory: pytest.TempPathFactory, data: bytes, position: int):
    base = tmp_path_factory.getbasetemp()
    good = write_checkpoint(base / "good", {"a": torch.ones(3), "b": torch.ones(2, 2).bfloat16()})
    raw = bytearray((good / "model.safetensors").read_bytes())
    raw[position : position + len(data)] = data
    folder = base / "flipped"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(raw)
    a, b = surgeon.open(good), surgeon.open(folder)
    attempt(lambda: surgeon.plan(0.5 * a + 0.5 * b))
    attempt(lambda: surgeon.plan(surgeon.merge("ties", [b], base_model=a)))


@many
@given(index=st.recursive(numbers, lambda inner: st.dictionaries(
    st.sampled_from(["weight_map", "metadata", "a", "b", "__metadata__"]), inner, max_size=3)))  # fmt: skip
def test_indexes(tmp_path_factory: pytest.TempPathFactory, index):
    folder = tmp_path_factory.getbasetemp() / "indexed"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    attempt(lambda: surgeon.plan(surgeon.open(folder)))


PIECES = st.sampled_from(
    ["surgeon: 1", "models:", "steps:", "output:", "a: ./good", "m:", "merge: ties", "merge: linear", "merge: slerp",
     "combine:", "0.5*a + 0.5*a", "a", "b", "base_model: a", "models: [a]", "models: {a: {weight: 1}}", "t: [0, 1]",
     "density: 0", "weight: [", "]", "{", "}", "  ", "    ", "\n", "&x", "*x", "!!int", "|", ">", "---", "1e400", "nan",
     "over: model", "dtype: bfloat16", "drop: ['*']", "- ", "? ", ": ", "\t", "\x00", "é", "merge_method: ties",
     "parameters:", "tokenizer_source: union", "base_model: good", "- model: good"]
)  # fmt: skip


@many
@given(pieces=st.lists(PIECES, max_size=30), glue=st.sampled_from(["\n", " ", "\n  ", "\n    "]))
def test_recipes(tmp_path_factory: pytest.TempPathFactory, pieces: list[str], glue: str):
    folder = tmp_path_factory.getbasetemp() / "recipes"
    folder.mkdir(exist_ok=True)
    write_checkpoint(folder / "good", {"a": torch.ones(3)})
    path: Path = folder / "recipe.yaml"
    path.write_text(glue.join(pieces))
    attempt(lambda: surgeon.plan(path))
