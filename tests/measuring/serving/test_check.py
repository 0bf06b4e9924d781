"""Every planted fault of a folder is found, and each server's row says what that server does with it."""

import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

import surgeon
from surgeon.testing.toys import read_checkpoint, toy_llama, write_checkpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture
def single(tmp_path):
    return with_tokenizer(toy_llama(tmp_path / "single"))


@pytest.fixture
def shards(tmp_path):
    return with_tokenizer(toy_llama(tmp_path / "shards", shards=3))


def with_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def rows(report):
    return {one.server: one for one in report.static.readings}


def verdicts(report):
    return {one.server: one.verdict for one in report.static.readings}


def wrong(report):
    """Subject → message of what is wrong."""
    found = {one.subject: one.message for one in report.static.verdict.findings if one.kind == "mismatch"}
    assert report.exit_code == (3 if found else 0), report.explain()
    return found


def edited(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def edit_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def added(folder, name, tensors):
    save_file(tensors, folder / name, metadata={"format": "pt"})
    (folder / name).chmod(0o644)


@pytest.mark.parametrize("layout", ["single", "shards"])
def test_a_sound_folder_is_loaded_by_every_server(layout, request):
    report = surgeon.check(request.getfixturevalue(layout))
    assert wrong(report) == {}
    assert set(verdicts(report).values()) == {"loads"}
    names = " ".join(verdicts(report)).lower()
    assert all(one in names for one in "transformers vllm sglang tgi tensorrt-llm lmdeploy llama.cpp mlx".split())
    assert "all servers above read them from" in report.explain()


def test_a_stale_consolidated_file(single):
    added(
        single,
        "consolidated.safetensors",
        {"layers.0.wq": load_file(single / "model.safetensors")["model.norm.weight"]},
    )
    report = surgeon.check(single)
    assert list(wrong(report)) == ["consolidated.safetensors"]
    found = rows(report)
    assert found["vLLM"].verdict == "other weights"
    assert found["vLLM"].files == ("consolidated.safetensors",)
    assert {found[name].verdict for name in ("transformers", "MLX", "TensorRT-LLM", "llama.cpp convert")} == {"loads"}


def test_a_stray_file(single):
    added(single, "foo.safetensors", {"foo": load_file(single / "model.safetensors")["model.norm.weight"]})
    report = surgeon.check(single)
    assert list(wrong(report)) == ["foo.safetensors"]
    assert rows(report)["vLLM"].verdict == "refuses"
    assert rows(report)["transformers"].verdict == "loads"


def test_a_stray_file_beside_an_index_is_seen_by_servers_that_read_none(shards):
    tensors = load_file(shards / "model-00001-of-00003.safetensors")
    added(shards, "old.safetensors", {name: tensor + 1 for name, tensor in tensors.items()})
    report = surgeon.check(shards)
    assert list(wrong(report)) == ["old.safetensors"]
    found = rows(report)
    assert found["vLLM"].verdict == "loads"
    assert found["TGI"].verdict == "refuses" and "several files" in found["TGI"].detail
    assert found["TensorRT-LLM"].verdict == "other weights" and "old.safetensors" in found["TensorRT-LLM"].detail
    assert found["MLX"].verdict == "loads"


def test_an_index_without_metadata(shards):
    edit_index(shards, lambda index: index.pop("metadata"))
    report = surgeon.check(shards)
    assert "metadata" in wrong(report)[INDEX]
    assert rows(report)["transformers"].verdict == "refuses"
    assert rows(report)["vLLM"].verdict == "loads"


def test_an_index_that_names_a_missing_tensor(shards):
    file = "model-00001-of-00003.safetensors"
    edit_index(shards, lambda index: index["weight_map"].update({"model.layers.9.mlp.up_proj.weight": file}))
    report = surgeon.check(shards)
    assert "model.layers.9" in wrong(report)[INDEX]
    assert "random" in rows(report)["transformers"].detail
    assert rows(report)["llama.cpp convert"].verdict == "refuses"
    assert "loads" not in {rows(report)[name].verdict for name in ("vLLM", "MLX")}


def test_an_index_that_names_a_missing_file(shards):
    (shards / "model-00002-of-00003.safetensors").unlink()
    report = surgeon.check(shards)
    assert "model-00002-of-00003.safetensors" in wrong(report)[INDEX]
    assert {rows(report)[name].verdict for name in ("transformers", "vLLM")} == {"refuses"}


def test_an_index_that_lacks_a_tensor(shards):
    edit_index(shards, lambda index: index["weight_map"].pop("model.norm.weight"))
    assert "model.norm.weight" in wrong(surgeon.check(shards))[INDEX]


def test_both_a_single_file_and_shards(shards):
    tensors = {name: tensor + 1 for name, tensor in read_checkpoint(shards).items()}
    added(shards, "model.safetensors", tensors)
    report = surgeon.check(shards)
    assert "beside" in wrong(report)["model.safetensors"]
    found = rows(report)
    assert found["transformers"].files == ("model.safetensors",) and found["transformers"].verdict == "other weights"
    assert found["vLLM"].verdict == "loads"
    assert found["LMDeploy (pytorch)"].verdict == "other weights" and found["LMDeploy (turbomind)"].verdict == "loads"


def test_shards_without_an_index(shards):
    (shards / INDEX).unlink()
    report = surgeon.check(shards)
    assert "missing" in wrong(report)[INDEX]
    assert rows(report)["transformers"].verdict == "refuses"
    assert rows(report)["vLLM"].verdict == rows(report)["MLX"].verdict == "loads"


@pytest.mark.parametrize("changed", [True, False])
def test_a_tied_head_edited_alone(tmp_path, changed):
    source = toy_llama(tmp_path / "source")
    tensors = read_checkpoint(source)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["lm_head.weight"][0, 0] += changed
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": True}
    found = wrong(surgeon.check(with_tokenizer(write_checkpoint(tmp_path / "tied", tensors, config))))
    assert list(found) == (["lm_head.weight"] if changed else [])


@pytest.mark.parametrize("at", ["quantization_config", "text_config"])
def test_a_quantization_config_left_behind(single, at):
    held = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    edited(single, **({at: held} if at == "quantization_config" else {at: {"quantization_config": held}}))
    assert "quantization_config" in wrong(surgeon.check(single))["config.json"]


def test_a_quantisation_that_is_there_is_none(tmp_path, single):
    import torch

    tensors = read_checkpoint(single)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    config = json.loads((single / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    assert wrong(surgeon.check(with_tokenizer(write_checkpoint(tmp_path / "fp8", tensors, config)))) == {}


def test_a_file_that_names_a_quantisation(single):
    (single / "hf_quant_config.json").write_text("{}")
    (single / "hf_quant_config.json").chmod(0o644)
    assert list(wrong(surgeon.check(single))) == ["hf_quant_config.json"]


def test_an_adapter_at_the_root(single):
    (single / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    added(
        single,
        "adapter_model.safetensors",
        {"base_model.model.x": load_file(single / "model.safetensors")["lm_head.weight"]},
    )
    report = surgeon.check(single)
    assert set(wrong(report)) == {"adapter_config.json", "adapter_model.safetensors"}
    assert rows(report)["transformers"].verdict == "other weights"
    assert rows(report)["vLLM"].verdict == "refuses"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_only_its_owner_may_read(single, name):
    (single / name).chmod(0o600)
    found = wrong(surgeon.check(single))
    assert list(found) == [name] and "0600" in found[name]


def test_rope_parameters_that_the_source_did_not_have(single, tmp_path):
    out = tmp_path / "out"
    surgeon.apply(surgeon.open(single), out)
    assert wrong(surgeon.check(out)) == {}
    edited(out, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
    assert "rope_parameters" in wrong(surgeon.check(out))["config.json"]
    assert wrong(surgeon.check(out, base=out)) == {}


def test_rope_parameters_of_the_source_are_the_source_s(single, tmp_path):
    edited(single, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
    surgeon.apply(surgeon.open(single), tmp_path / "out")
    assert wrong(surgeon.check(tmp_path / "out")) == {}
    report = surgeon.check(single)
    assert report.exit_code == 0
    assert [one.kind for one in report.static.verdict.findings] == ["note"]


def test_rope_parameters_without_the_source_cannot_be_judged(single, tmp_path):
    edited(single, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
    surgeon.apply(surgeon.open(single), tmp_path / "out")
    shutil.rmtree(single)
    report = surgeon.check(tmp_path / "out")
    assert report.exit_code == 4
    assert "--base" in report.explain()


def test_a_tokenizer_class_that_the_source_did_not_have(single, tmp_path):
    surgeon.apply(surgeon.open(single), tmp_path / "out")
    (tmp_path / "out" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    (tmp_path / "out" / "tokenizer_config.json").chmod(0o644)
    assert "TokenizersBackend" in wrong(surgeon.check(tmp_path / "out"))["tokenizer_config.json"]


def test_without_a_config_nothing_serves(single):
    (single / "config.json").unlink()
    assert "missing" in wrong(surgeon.check(single))["config.json"]


def test_a_damaged_shard(shards):
    path = shards / "model-00002-of-00003.safetensors"
    os.truncate(path, path.stat().st_size - 8)
    found = wrong(surgeon.check(shards))
    assert path.name in found
    assert rows(surgeon.check(shards))["vLLM"].verdict == "refuses"


def test_every_fault_at_once(shards):
    edited(shards, quantization_config={"quant_method": "fp8"})
    edit_index(shards, lambda index: index.pop("metadata"))
    (shards / "model-00001-of-00003.safetensors").chmod(0o600)
    (shards / "old.bin").write_bytes(b"")
    assert len(wrong(surgeon.check(shards))) == 4


def test_what_is_no_model_is_refused(tmp_path, single):
    with pytest.raises(surgeon.CheckpointError, match="no such folder"):
        surgeon.check(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(surgeon.CheckpointError, match=r"no model\.safetensors"):
        surgeon.check(tmp_path / "empty")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(surgeon.RefusedError, match="is an adapter"):
        surgeon.check(adapter)


def test_the_report_as_data(single):
    report = json.loads(json.dumps(surgeon.check(single).to_dict()))
    assert report["exit_code"] == 0 and report["served"] is None
    assert report["checked"]["servers"]["vLLM"] == {
        "verdict": "loads",
        "files": ["model.safetensors"],
        "detail": "model.safetensors",
    }
