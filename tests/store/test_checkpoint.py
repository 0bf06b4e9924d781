"""Checkpoints: folders, shards, indexes, single files and the files beside them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from surgeon.errors import CheckpointError
from surgeon.store.checkpoint import open_checkpoint
from surgeon.store.side_files import side_files
from surgeon.store.source import open_source


def shards(root, parts, weight_map=None, stem="model"):
    """Write `parts` (one dict of tensors a shard) and an index."""
    root.mkdir(exist_ok=True)
    said = {}
    for number, tensors in enumerate(parts, 1):
        name = f"{stem}-{number:05}-of-{len(parts):05}.safetensors"
        save_file(tensors, root / name)
        said |= dict.fromkeys(tensors, name)
    index = {"metadata": {}, "weight_map": said if weight_map is None else weight_map}
    (root / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return root


def one(name="a"):
    return {name: torch.ones(2)}


def test_folder_with_one_file(tmp_path):
    save_file(one("a") | one("b"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    found = open_checkpoint(tmp_path, "./m")
    assert list(found.tensors) == ["a", "b"]
    assert found.shard_of == dict.fromkeys("ab", "model.safetensors")
    assert found.config == {"model_type": "llama"}
    assert (found.root, found.single_file, found.revision) == (tmp_path, False, None)


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
def test_folder_with_shards(tmp_path, stem):
    found = open_checkpoint(shards(tmp_path, [one("b"), one("a")], stem=stem), "./m", "abc")
    assert list(found.tensors) == ["b", "a"]
    assert found.shard_of["a"] == f"{stem}-00002-of-00002.safetensors"
    assert found.tensors["a"].file == tmp_path / found.shard_of["a"]
    assert (found.config, found.revision) == ({}, "abc")


def test_single_file_has_no_side_files(tmp_path):
    save_file(one(), tmp_path / "odd.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    found = open_source(str(tmp_path / "odd.safetensors"))
    assert found.single_file and found.config == {} and side_files(found) == () and found.root == tmp_path


def test_index_that_lists_the_single_file(tmp_path):
    save_file(one("a"), tmp_path / "model.safetensors")
    save_file(one("b"), tmp_path / "more.safetensors")
    index = {"weight_map": {"a": "model.safetensors", "b": "more.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(open_checkpoint(tmp_path, "./m").tensors) == {"a", "b"}


def test_two_checkpoints_in_one_folder(tmp_path):
    save_file(one(), shards(tmp_path, [one()]) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"both model\.safetensors and model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path, "./m")


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "a\0.safetensors",
        "a" * 300 + ".safetensors",
        "\ud800.safetensors",
    ],
)
def test_index_that_climbs_out(tmp_path, name):
    save_file(one(), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not a plain file name"):
        open_checkpoint(shards(tmp_path / "m", [], {"a": name}), "./m")


@pytest.mark.parametrize("weight_map", [{}, [], {"a": 1}, {"a": None}, {"a": "pytorch_model.bin"}, {"a": ".."}])
def test_index_of_the_wrong_kind(tmp_path, weight_map):
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(shards(tmp_path / "m", [], weight_map), "./m")


def test_broken_index(tmp_path):
    for text in ("{", "[]", '{"weight_map": {"a": "x", "a": "x"}}', "[" * 100_000):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json"):
            open_checkpoint(tmp_path, "./m")


def test_missing_shard(tmp_path):
    root = shards(tmp_path / "m", [one("a"), one("b")])
    (root / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing file\(s\): model-00002-of-00002"):
        open_checkpoint(root, "./m")


def test_index_against_headers_lists_both_ways(tmp_path):
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    said = {"ghost": first, "a": second, "b": second}
    root = shards(tmp_path / "m", [one("a") | one("stray"), one("b")], said)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(root, "./m")
    text = str(caught.value)
    assert "on 3 tensor(s)" in text
    assert f"'ghost': index says {first}, no such tensor" in text
    assert f"'stray': in {first}, not in the index" in text
    assert f"'a': index says {second}, found in {first}" in text


def test_tensor_in_two_shards(tmp_path):
    with pytest.raises(CheckpointError, match="'a' lies in both model-00001-of-00002"):
        open_checkpoint(shards(tmp_path / "m", [one("a") | one("c"), one("a") | one("b")]), "./m")


def test_symlinks(tmp_path):
    outside = tmp_path / "secret.safetensors"
    save_file(one(), outside)
    plain = tmp_path / "m"
    plain.mkdir()
    (plain / "model.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="symbolic link"):
        open_checkpoint(plain, "./m")
    snapshot = tmp_path / "hub/models--org--name/snapshots/0123"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "hub/models--org--name/blobs"
    blobs.mkdir()
    outside.rename(blobs / "beef")
    (snapshot / "model.safetensors").symlink_to("../../blobs/beef")
    assert list(open_checkpoint(snapshot, "org/name").tensors) == ["a"]
    (tmp_path / "link").symlink_to(snapshot)
    assert list(open_checkpoint(tmp_path / "link", "./link").tensors) == ["a"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_refused_with_a_command_that_converts(tmp_path, name):
    torch.save(one(), tmp_path / name)
    with pytest.raises(CheckpointError, match=name) as caught:
        open_checkpoint(tmp_path, "./m")
    assert "save_pretrained" in caught.value.hint
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with pytest.raises(CheckpointError, match="pickle") as caught:
        open_checkpoint(tmp_path / name, "./m")
    subprocess.run(
        caught.value.hint[caught.value.hint.index("python -c") :], shell=True, check=True, cwd=tmp_path, env=env
    )
    assert list(open_checkpoint(tmp_path / "model.safetensors", "./m").tensors) == ["a"]


def test_gguf_is_refused_with_import(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / "m.gguf"):
        with pytest.raises(CheckpointError, match="GGUF") as caught:
            open_checkpoint(path, "./m")
        assert caught.value.hint == f"surgeon import {tmp_path / 'm.gguf'} -o DIR"


def test_folder_with_other_names(tmp_path):
    with pytest.raises(CheckpointError, match="no model"):
        open_checkpoint(tmp_path, "./m")
    save_file(one(), tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match="odd") as caught:
        open_checkpoint(tmp_path, "./m")
    assert str(tmp_path / "odd.safetensors") in caught.value.hint


COPIED = [
    "LICENSE.txt", "NOTICE", "USE_POLICY.md", "added_tokens.json", "additional_chat_templates/tools.jinja",
    "chat_template.jinja", "config.json", "generation_config.json", "merges.txt", "modeling_x.py", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "vocab.json",
]  # fmt: skip
LEFT = [
    "README.md", "consolidated.safetensors", "params.json", "pytorch_model.bin", "optimizer.pt", "trainer_state.json",
    "adapter_config.json", "original/config.json", "metal/model.bin", "model.gguf", "pytorch_model.bin.index.json",
    "additional_chat_templates/run.sh", "sub/code.py",
]  # fmt: skip


def test_side_files(tmp_path):
    save_file(one(), tmp_path / "model.safetensors")
    for name in COPIED + LEFT:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    found = side_files(open_checkpoint(tmp_path, "./m"))
    assert [path.relative_to(tmp_path).as_posix() for path in found] == sorted(COPIED)


def test_side_file_that_links_out(tmp_path):
    root = tmp_path / "m"
    root.mkdir()
    save_file(one(), root / "model.safetensors")
    (tmp_path / "secret").write_text("{}")
    (root / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        side_files(open_checkpoint(root, "./m"))


def test_broken_config(tmp_path):
    save_file(one(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        _ = open_checkpoint(tmp_path, "./m").config
