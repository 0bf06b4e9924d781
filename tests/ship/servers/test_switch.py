"""`push-weights` against a server that speaks the endpoints, and fails in the ways real ones do."""

import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import surgeon
from surgeon.ship.adapter import write_adapter
from surgeon.ship.factors import Factors
from surgeon.testing.toys import read_checkpoint, toy_llama
from surgeon_cli.main import app
from tests.support.fake_servers import FakeServer


@pytest.fixture
def base(tmp_path):
    return toy_llama(tmp_path / "base", shards=2)


@pytest.fixture
def tuned(tmp_path, base):
    return toy_llama(tmp_path / "tuned", 1, base=base)


@pytest.fixture
def patch(tmp_path, tuned):
    """The edited tensors alone."""
    folder = tmp_path / "patch"
    folder.mkdir()
    name = "model.layers.0.mlp.down_proj.weight"
    save_file({name: read_checkpoint(tuned)[name]}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "polite"
    folder.mkdir()
    factors = Factors(torch.ones(32, 1), torch.ones(1, 48), 0.0, 1.0)
    changes = {"model.layers.0.mlp.down_proj": factors}
    write_adapter(folder, changes, base="base", transposed=False, dtype=torch.float32)
    return folder


def calls(report):
    return [(method, url.rpartition("/")[2], body) for method, url, body in report.calls]


@pytest.mark.parametrize("which", ["tuned", "patch"])
def test_vllm_reloads_weights_and_forgets_its_prefixes(base, which, request):
    folder = request.getfixturevalue(which)
    with FakeServer("vllm", base) as server:
        report = surgeon.push_weights(server.url, folder)
        assert server.switched == [
            ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}),
            ("/reset_prefix_cache", None),
        ]
    assert report.done and report.changed is True and report.models == ["base"]
    assert "answers otherwise than before" in report.summary()


def test_sglang_updates_from_disk(base, tuned):
    with FakeServer("sglang", base) as server:
        report = surgeon.push_weights(server.url + "/v1/", tuned)
        assert server.switched == [("/update_weights_from_disk", {"model_path": str(tuned), "flush_cache": True})]
    assert report.notes == []


def test_an_adapter_is_served_beside_the_base(base, adapter):
    with FakeServer("vllm", base) as server:
        report = surgeon.push_weights(server.url, adapter, name="kind")
        loaded = {"lora_name": "kind", "lora_path": str(adapter), "load_inplace": False}
        assert server.switched == [("/v1/load_lora_adapter", loaded), ("/reset_prefix_cache", None)]
        assert report.models == ["base", "kind"] and report.changed is False
        surgeon.push_weights(server.url, adapter, name="kind")
        assert server.switched[2] == ("/v1/load_lora_adapter", loaded | {"load_inplace": True})
    with FakeServer("sglang", base) as server:
        surgeon.push_weights(server.url, adapter)
        assert server.switched == [("/load_lora_adapter", {"lora_name": "polite", "lora_path": str(adapter)})]
        with pytest.raises(surgeon.RefusedError, match="serves polite already"):
            surgeon.push_weights(server.url, adapter)


def test_a_server_without_the_developers_endpoints_keeps_its_cache_and_says_so(base, adapter):
    with FakeServer("vllm", base, lacks=("/reset_prefix_cache",)) as server:
        report = surgeon.push_weights(server.url, adapter)
    assert "answers cached before" in report.notes[0]


def test_llamacpp_scales_one_adapter_and_keeps_the_others(tmp_path):
    with FakeServer("llamacpp", "", loras=("/models/a.gguf", "/models/b.gguf")) as server:
        report = surgeon.push_weights(server.url, "b.gguf", scale=0.5)
        assert server.switched == [("/lora-adapters", [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 0.5}])]
        assert report.changed is True
        with pytest.raises(surgeon.RefusedError, match=r"0: /models/a\.gguf, 1: /models/b\.gguf"):
            surgeon.push_weights(server.url, "c.gguf", scale=1)
        with pytest.raises(surgeon.RefusedError, match="what scale"):
            surgeon.push_weights(server.url, "a.gguf")


def test_a_dry_run_prints_the_calls_and_makes_none(base, tuned, adapter):
    with FakeServer("vllm", base) as server:
        result = CliRunner().invoke(app, ["push-weights", server.url, str(tuned), "--dry-run"])
        assert result.exit_code == 0, result.output
        line = json.dumps({"method": "reload_weights", "kwargs": {"weights_path": str(tuned)}})
        assert f"POST {server.url}/collective_rpc {line}\nPOST {server.url}/reset_prefix_cache\n" in result.output
        found = CliRunner().invoke(app, ["push-weights", server.url, str(adapter), "--dry-run", "--json"])
        assert json.loads(found.output)["calls"][0]["body"]["lora_name"] == "polite"
        assert server.switched == [] and server.weights == "old"


@pytest.mark.parametrize("fault", ["name", "shape"])
@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_what_would_end_the_engine_is_refused_before_it_is_called(base, patch, fault, kind):
    name, tensor = next(iter(read_checkpoint(patch).items()))
    stray = {"extra.weight": tensor.clone()} if fault == "name" else {name: tensor[:, 1:].contiguous()}
    save_file({name: tensor} | stray, patch / "model.safetensors", metadata={"format": "pt"})
    with FakeServer(kind, base) as server:
        with pytest.raises(surgeon.MismatchError, match=next(iter(stray))):
            surgeon.push_weights(server.url, patch)
        assert server.switched == []


def test_a_consolidated_file_is_refused(base, tuned):
    (tuned / "model.safetensors").rename(tuned / "consolidated.safetensors")
    with FakeServer("vllm", base) as server:
        with pytest.raises(surgeon.CheckpointError, match="consolidated"):
            surgeon.push_weights(server.url, tuned)
        assert server.switched == []


def test_an_adapter_for_another_model_or_of_a_kind_not_taken_is_refused(base, adapter, tmp_path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    other = toy_llama(tmp_path / "wide", intermediate_size=96, hidden_size=64)
    with FakeServer("vllm", other) as server:
        with pytest.raises(surgeon.MismatchError, match="does not fit"):
            surgeon.push_weights(server.url, adapter)
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
        with pytest.raises(surgeon.RefusedError, match="DoRA"):
            surgeon.push_weights(server.url, adapter, base=base)
        assert server.switched == []


def test_unchecked_names_are_told(tmp_path, tuned):
    with FakeServer("vllm", "/elsewhere/model") as server:
        report = surgeon.push_weights(server.url, tuned, remote_path="/shared/tuned", dry_run=True)
    assert "not checked" in report.notes[0]
    assert report.calls[0][2]["kwargs"] == {"weights_path": "/shared/tuned"}


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (400, "it still serves the old weights"),
        ("says no", "it still serves the old weights"),
        ("dies", "it no longer serves .*503.*start it again with its old weights"),
        ("gone", "it no longer answers: start it again"),
        ("mixes", "may be mixed: start it again"),
    ],
)
@pytest.mark.parametrize(("kind", "path"), [("vllm", "/collective_rpc"), ("sglang", "/update_weights_from_disk")])
def test_a_switch_that_fails_says_what_is_served(base, tuned, kind, path, failure, told):
    with FakeServer(kind, base, fails={path: failure}) as server:
        with pytest.raises(surgeon.RunError, match=told) as error:
            surgeon.push_weights(server.url, tuned)
        assert path in error.value.message and error.value.exit_code == 1
        assert [asked for asked, _ in server.switched] == [path]


def test_a_server_without_the_endpoint_says_how_to_start_it(base, tuned):
    with FakeServer("vllm", base, lacks=("/collective_rpc",)) as server, pytest.raises(surgeon.RunError) as error:
        surgeon.push_weights(server.url, tuned)
    assert "VLLM_SERVER_DEV_MODE=1" in error.value.hint and "old weights" in error.value.message


def test_a_key_is_sent_and_never_shown(base, tuned, monkeypatch):
    monkeypatch.setenv("SURGEON_API_KEY", "sesame-street")
    with FakeServer("vllm", base, key="sesame-street") as server:
        result = CliRunner().invoke(app, ["push-weights", server.url, str(tuned), "--json"])
        assert result.exit_code == 0 and "sesame" not in result.output
        with pytest.raises(surgeon.RefusedError, match=r"401.*no list of models"):
            surgeon.push_weights(server.url, tuned, api_key="")


def test_no_server_and_unknown_servers(tuned, tmp_path):
    with pytest.raises(surgeon.RefusedError, match="is no server's URL"):
        surgeon.push_weights("localhost:8000", tuned)
    with pytest.raises(surgeon.RunError, match="no answer"):
        surgeon.push_weights("http://127.0.0.1:9", tuned)
    with FakeServer("someone", tmp_path) as server:
        with pytest.raises(surgeon.RefusedError, match="--server vllm"):
            surgeon.push_weights(server.url, tuned)
        with pytest.raises(surgeon.RefusedError, match="known: vllm, sglang, llamacpp"):
            surgeon.push_weights(server.url, tuned, server="tgi")
        with pytest.raises(surgeon.RefusedError, match="no such folder"):
            surgeon.push_weights(server.url, tmp_path / "nothing", server="vllm")
