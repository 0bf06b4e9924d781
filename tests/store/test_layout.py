"""The layout: safetensors' own bytes, names that servers read, and no tensor lost."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from surgeon.errors import RefusedError
from surgeon.store import layout as layout_module
from surgeon.store.layout import Layout, lay_out, same_as_source
from surgeon.tensors import BITS, TensorSpec

TORCH = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16,
    "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip

SPECS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda name: name[:2] != "__"),
    st.builds(TensorSpec, st.sampled_from(sorted(TORCH)), st.lists(st.integers(0, 5), max_size=3).map(tuple)),
    min_size=1,
    max_size=12,
)


def f32(*names: str, count: int = 4) -> dict[str, TensorSpec]:
    return {name: TensorSpec("F32", (count,)) for name in names}


def names(laid: Layout) -> list[str]:
    return [file.name for file in laid.files]


def grouped(laid: Layout) -> list[set[str]]:
    return [set(file.tensors) for file in laid.files]


@given(SPECS)
def test_the_header_is_the_one_safetensors_writes(specs: Mapping[str, TensorSpec]):
    tensors = {name: torch.zeros(spec.shape).to(TORCH[spec.dtype]) for name, spec in specs.items()}
    reference = save(tensors, {"format": "pt"})
    (file,) = lay_out(specs, None, None).files
    assert file.header == reference[: len(file.header)]
    assert file.size == len(reference)


@given(SPECS, st.integers(1, 200), st.data())
def test_every_tensor_has_one_place_and_nothing_lies_between(specs: Mapping[str, TensorSpec], size: int, data):
    known = st.sampled_from([f"model-{i}-of-3.safetensors" for i in (1, 2, 3)])
    shard_of = {name: data.draw(known) for name in specs if data.draw(st.booleans())}
    for laid in (lay_out(specs, shard_of, None), lay_out(specs, shard_of, size), lay_out(specs, None, size)):
        assert sorted(name for file in laid.files for name in file.tensors) == sorted(specs)
        for file in laid.files:
            end = len(file.header)
            for name in file.tensors:
                place = laid.tensors[name]
                assert (place.file, place.offset, place.spec) == (file.name, end, specs[name])
                end += specs[name].nbytes
            assert end == file.size
            assert len(file.header) % 8 == 0
            assert json.loads(file.header[8:])["__metadata__"] == {"format": "pt"}
        assert (laid.index is None) == (len(laid.files) == 1)


@given(SPECS, st.integers(1, 200))
def test_a_shard_holds_more_than_its_size_only_for_one_tensor(specs: Mapping[str, TensorSpec], size: int):
    laid = lay_out(specs, None, size)
    for file in laid.files:
        assert file.size - len(file.header) <= size or sum(specs[name].nbytes > 0 for name in file.tensors) == 1
    assert [name for file in laid.files for name in sorted(file.tensors, key=list(specs).index)] == list(specs)


def test_every_dtype_has_a_place_in_the_order():
    specs = {dtype: TensorSpec(dtype, (8,)) for dtype in BITS}
    (file,) = lay_out(specs, None, None).files
    widths = [BITS[name] for name in file.tensors if name != "BOOL"]
    assert widths == sorted(widths, reverse=True)


def test_new_shards_are_numbered_and_indexed():
    specs = f32("c", "a", "b")
    laid = lay_out(specs, None, 32)
    assert names(laid) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert grouped(laid) == [{"c", "a"}, {"b"}]
    assert laid.index_name == "model.safetensors.index.json"
    index = json.loads(laid.index or b"")
    assert index["metadata"] == {"total_parameters": 12, "total_size": 48}
    assert list(index["weight_map"].items()) == [
        ("a", "model-00001-of-00002.safetensors"),
        ("b", "model-00002-of-00002.safetensors"),
        ("c", "model-00001-of-00002.safetensors"),
    ]


def test_shard_size_comes_before_the_source_s_map():
    laid = lay_out(f32("a", "b"), {"a": "model.safetensors", "b": "model.safetensors"}, 16)
    assert names(laid) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def shards(stem: str, count: int, letters: str = "abc") -> dict[str, str]:
    return {name: f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i, name in enumerate(letters, 1)}


def test_the_source_s_names_and_partition_are_kept():
    source = {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}
    laid = lay_out(f32("a", "b"), source, None)
    assert {name: place.file for name, place in laid.tensors.items()} == source
    odd = {"a": "language.safetensors", "b": "vision.safetensors"}
    laid = lay_out(f32("a", "b"), odd, None)
    assert {name: place.file for name, place in laid.tensors.items()} == odd
    assert laid.index_name == "model.safetensors.index.json"


def test_a_vanished_shard_renumbers_the_others():
    laid = lay_out(f32("a", "c"), shards("model", 3), None)
    assert names(laid) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert grouped(laid) == [{"a"}, {"c"}]
    assert names(lay_out(f32("b"), shards("model", 3), None)) == ["model.safetensors"]


def test_unpadded_numbers_keep_their_order():
    source = {name: f"model-{i}-of-12.safetensors" for i, name in enumerate("abcdefghijkl", 1)}
    laid = lay_out(f32(*"bcdefghijkl"), source, None)
    assert grouped(laid) == [{name} for name in "bcdefghijkl"]


def test_new_tensors_join_their_neighbour():
    laid = lay_out(f32("x", "a", "y", "b", "z"), shards("model", 2, "ab"), None)
    assert grouped(laid) == [{"x", "a", "y"}, {"b", "z"}]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("model.safetensors", "model.safetensors"),
        ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"),
        ("model-00001-of-00001.safetensors", "model.safetensors"),
        ("consolidated.safetensors", "model.safetensors"),
        ("adapter_model.safetensors", "model.safetensors"),
        ("training_args.safetensors", "model.safetensors"),
        ("sub/model.safetensors", "model.safetensors"),
        (".hidden.safetensors", "model.safetensors"),
        ("weights.bin", "model.safetensors"),
    ],
)
def test_a_lone_file_has_a_name_that_servers_read(source: str, name: str):
    laid = lay_out(f32("a"), {"a": source}, None)
    assert names(laid) == [name]
    assert laid.index_name is None


def test_several_files_that_servers_misread_are_renamed():
    source = {"a": "consolidated.00.safetensors", "b": "consolidated.01.safetensors"}
    assert names(lay_out(f32("a", "b"), source, None)) == list(shards("model", 2, "ab").values())


def test_the_index_is_named_after_the_shards():
    laid = lay_out(f32("a", "b"), shards("diffusion_pytorch_model", 2, "ab"), None)
    assert laid.index_name == "diffusion_pytorch_model.safetensors.index.json"
    laid = lay_out(f32("a", "b"), shards("diffusion_pytorch_model", 2, "ab"), 1000)
    assert names(laid) == ["diffusion_pytorch_model.safetensors"]


def test_the_same_specs_give_the_same_bytes_in_any_order():
    specs = f32("b", "a") | {"m": TensorSpec("BF16", (3, 2))}
    one, two = lay_out(specs, None, None), lay_out(dict(sorted(specs.items())), None, None)
    assert one.files == two.files


def test_a_header_too_large_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layout_module, "MAX_HEADER", 400)
    many = f32(*(f"t{i}" for i in range(20)))
    with pytest.raises(RefusedError, match=r"model\.safetensors.*20 tensors(.|\n)*shard_size"):
        lay_out(many, None, None)
    assert len(lay_out(many, None, 32).files) == 10


def test_a_result_without_tensors_is_refused():
    with pytest.raises(RefusedError, match="no tensor"):
        lay_out({}, {"a": "model.safetensors"}, None)


def test_a_shard_is_recognised_in_its_source(tmp_path: Path):
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, tmp_path / "same", {"format": "pt"})
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, tmp_path / "plain")
    save_file({"a": torch.ones(4)}, tmp_path / "fewer", {"format": "pt"})
    (tmp_path / "short").write_bytes((tmp_path / "same").read_bytes()[:-1])
    (shard,) = lay_out(f32("a", "b"), None, None).files
    found = {path.name: same_as_source(shard, path) for path in tmp_path.iterdir()}
    assert found == {"same": True, "plain": False, "fewer": False, "short": False}
