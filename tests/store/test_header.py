"""Headers of safetensors files, good and bad."""

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from surgeon.errors import CheckpointError, SurgeonError
from surgeon.store.header import read_header
from surgeon.tensors import TensorSpec


def write(path, header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(begin, end, dtype="U8", shape=None):
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_agrees_with_the_reference_writer(tmp_path):
    tensors = {
        "matrix": torch.randn(3, 4),
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 5, dtype=torch.bfloat16),
        "half": torch.randn(7).half(),
        "flags": torch.tensor([True, False]),
        "ids": torch.arange(6).reshape(2, 3),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, {"format": "pt"})
    header = read_header(path)
    assert header.tensors.keys() == tensors.keys()
    assert header.metadata == {"format": "pt"}
    raw = path.read_bytes()
    for name, stored in header.tensors.items():
        expected = tensors[name]
        assert stored.spec.shape == tuple(expected.shape)
        found = raw[stored.offset : stored.offset + stored.spec.nbytes]
        assert found == bytes(expected.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    offsets = [stored.offset for stored in header.tensors.values()]
    assert offsets == sorted(offsets)


@pytest.mark.parametrize("padding", [b"", b" ", b"   "])
def test_padded_and_unpadded(tmp_path, padding):
    path = write(tmp_path / "x", json.dumps({"b": entry(2, 3), "a": entry(0, 2)}).encode() + padding, b"abc")
    header = read_header(path)
    assert list(header.tensors) == ["a", "b"]
    assert header.tensors["b"].spec == TensorSpec("U8", (1,))
    assert path.read_bytes()[header.tensors["b"].offset :] == b"c"


def test_no_tensors(tmp_path):
    assert not read_header(write(tmp_path / "x", {})).tensors


def test_digest_follows_the_header_alone(tmp_path):
    one = read_header(write(tmp_path / "1", {"a": entry(0, 1)}, b"a")).digest
    assert read_header(write(tmp_path / "2", {"a": entry(0, 1)}, b"b")).digest == one
    assert read_header(write(tmp_path / "3", {"b": entry(0, 1)}, b"a")).digest != one


def test_twenty_thousand_tensors(tmp_path):
    header = {f"model.layers.{i}.weight": entry(4 * i, 4 * i + 4) for i in range(20_000)}
    assert len(read_header(write(tmp_path / "x", header, bytes(80_000))).tensors) == 20_000


HUGE = 2**62
FAULTS = {
    "overlap": ({"a": entry(0, 4), "b": entry(2, 6)}, 6, "'b'.*overlaps"),
    "same place twice": ({"a": entry(0, 4), "b": entry(0, 4)}, 4, "overlaps"),
    "hole": ({"a": entry(0, 2), "b": entry(4, 6)}, 6, "hole of 2 bytes after tensor 'a'"),
    "hole at the start": ({"a": entry(2, 4)}, 4, "hole of 2 bytes after the header"),
    "trailing bytes": ({"a": entry(0, 4)}, 9, "5 bytes after tensor 'a' belong to no tensor"),
    "truncated data": ({"a": entry(0, 8)}, 4, "'a'.*0..8 do not lie in the 4 bytes"),
    "begin after end": ({"a": entry(4, 0, shape=[4])}, 4, "4..0"),
    "negative offset": ({"a": entry(-4, 4, shape=[8])}, 4, "two non-negative integers"),
    "float offset": ({"a": entry(0, 4) | {"data_offsets": [0, 4.0]}}, 4, "two non-negative integers"),
    "boolean offset": ({"a": entry(0, 1) | {"data_offsets": [False, True]}}, 1, "two non-negative integers"),
    "three offsets": ({"a": entry(0, 4) | {"data_offsets": [0, 2, 4]}}, 4, "two non-negative integers"),
    "size": ({"a": entry(0, 4, "F32", [2])}, 4, r"F32\[2\] is larger"),
    "small size": ({"a": entry(0, 4, "F16", [1])}, 4, r"F16\[1\] takes 2 bytes, found 4"),
    "negative size": ({"a": entry(0, 4, shape=[-4])}, 4, "shape"),
    "boolean size": ({"a": entry(0, 1, shape=[True])}, 1, "shape"),
    "shape is text": ({"a": entry(0, 4, shape="4")}, 4, "shape"),
    "overflowing product": ({"a": entry(0, 0, shape=[HUGE, HUGE, 4])}, 0, "larger"),
    "bomb of sizes": ({"a": entry(0, 0, shape=[HUGE] * 100_000)}, 0, "larger"),
    "size beyond 63 bits": ({"a": entry(0, 0, shape=[2**64, 0])}, 0, "shape"),
    "unknown dtype": ({"a": entry(0, 4, "F31")}, 4, "unknown dtype 'F31'"),
    "dtype is a list": ({"a": entry(0, 4, ["F32"])}, 4, "unknown dtype"),
    "part of a byte": ({"a": entry(0, 1, "F4", [1])}, 1, "0.5 bytes"),
    "missing field": ({"a": {"dtype": "U8", "shape": [1]}}, 1, "exactly dtype"),
    "extra field": ({"a": entry(0, 1) | {"device": "cpu"}}, 1, "exactly dtype"),
    "entry is a list": ({"a": [1]}, 1, "exactly dtype"),
    "metadata number": ({"__metadata__": {"format": 1}}, 0, "__metadata__"),
    "metadata list": ({"__metadata__": ["pt"]}, 0, "__metadata__"),
    "surrogate name": (b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1, "not a name"),
    "surrogate metadata": (b'{"__metadata__":{"a":"\\ud800"}}', 0, "all of them Unicode"),
    "empty name": ({"": entry(0, 1)}, 1, "not a name"),
    "duplicate tensor": (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}', 0, "duplicate key 'a'"),
    "duplicate field": (
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        0,
        "duplicate key 'dtype'",
    ),
    "not UTF-8": (b'{"\xff":1}', 0, "'utf-8' codec"),
    "not JSON": (b'{"a":', 0, "not valid JSON"),
    "a list": (b"[]", 0, "not a JSON object"),
    "trailing text": (b"{} {}", 0, "not valid JSON"),
    "deep nesting": (b'{"a":' * 200_000, 0, "nested too deeply"),
    "endless integer": (b'{"a":' + b"9" * 10_000 + b"}", 0, "not valid JSON"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(tmp_path, name):
    header, size, message = FAULTS[name]
    path = write(tmp_path / "x.safetensors", header, bytes(size))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert "x.safetensors" in str(caught.value)
    assert caught.value.hint
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 50])
def test_length_bomb(tmp_path, length):
    with pytest.raises(CheckpointError, match=r"claims a header|truncated"):
        read_header(write(tmp_path / "x", b"{}", length=length))


@pytest.mark.parametrize("size", range(9))
def test_too_short(tmp_path, size):
    (tmp_path / "x").write_bytes(b"\x02\0\0\0\0\0\0\0{"[:size])
    with pytest.raises(CheckpointError):
        read_header(tmp_path / "x")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            read_header(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_in_disguise(tmp_path, zipped):
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="pickle") as caught:
        read_header(path)
    assert "weights_only=True" in caught.value.hint


def test_gguf_in_disguise(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"GGUF\x03\0\0\0" + bytes(100))
    with pytest.raises(CheckpointError, match="GGUF") as caught:
        read_header(tmp_path / "model.safetensors")
    assert caught.value.hint.startswith("surgeon import")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4), max_leaves=8
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "X"]) | values,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | values,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | values,
    }
)
headers = st.dictionaries(
    st.sampled_from(["a", "b", "c", "__metadata__"]) | st.text(max_size=4), entries | values, max_size=4
)
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(header=headers.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200), size=st.integers(0, 64))
def test_fuzz_headers(tmp_path, header, size):
    try:
        found = read_header(write(tmp_path / "x", header, bytes(size)))
    except SurgeonError as error:
        assert str(error).encode()
        return
    assert sum(stored.spec.nbytes for stored in found.tensors.values()) == size


@FUZZ
@given(raw=st.binary(max_size=64))
def test_fuzz_bytes(tmp_path, raw):
    (tmp_path / "x").write_bytes(raw)
    try:
        read_header(tmp_path / "x")
    except SurgeonError as error:
        assert str(error).encode()


@FUZZ
@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_fuzz_one_byte_of_a_good_file(tmp_path, position, value):
    good = {f"layer.{i}": entry(8 * i, 8 * i + 8, "F32", [2]) for i in range(4)}
    path = write(tmp_path / "x", good, bytes(32))
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] = value
    path.write_bytes(raw)
    try:
        read_header(path)
    except SurgeonError as error:
        assert str(error).encode()
